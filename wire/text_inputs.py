"""The text contract's names: every input and output, once, for the decoder and the metadata.

Inputs and outputs are those of Triton's vLLM backend; aliases are Triton's and TensorRT-LLM's.
"""

import msgspec

from wire.guided_decoding import GUIDE_INPUTS
from wire.sampling_inputs import BOOL, FLOAT, INT, INTS, JSON, JSON_INPUT, SAMPLING_TENSORS, TEXT
from wire.sampling_inputs import Kind as Kind

INPUT_IDS = "input_ids"
PROMPTS = {
    "text_input": "text_input",
    "prompt": "text_input",
    "QUERY": "text_input",
    "input_ids": "input_ids",
    "messages": "messages",
}
"""Input name to what it is; exactly one of them stands in a request."""

OUTPUT_FLAGS: dict[str, tuple[str, ...]] = {
    "return_finish_reason": ("finish_reason",),
    "return_output_ids": ("output_ids",),
    "return_logprobs": ("logprobs",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_log_probs": ("cum_log_probs", "output_log_probs"),
    "return_num_input_tokens": ("num_input_tokens",),
    "return_num_output_tokens": ("num_output_tokens",),
    "return_prompt_logprobs": ("prompt_logprobs",),
    "return_reasoning": ("reasoning_output",),
    "return_tool_calls": ("tool_calls",),
    "embedding_request": ("embedding",),
}
"""Input name to the outputs it switches on."""

OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "output_ids": "INT32",
    "logprobs": "BYTES",
    "cumulative_logprob": "FP32",
    "cum_log_probs": "FP32",
    "output_log_probs": "FP32",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "prompt_logprobs": "BYTES",
    "reasoning_output": "BYTES",
    "tool_calls": "BYTES",
    "embedding": "FP32",
}
"""Output name to datatype, in the order they are sent."""

NEEDS_LOGPROBS = frozenset({"cumulative_logprob", "cum_log_probs", "output_log_probs"})
"""Outputs that switch the engine's log probabilities on by themselves."""

STREAM = "stream"
EXCLUDE = "exclude_input_in_output"
SPECIAL_TOKENS = "add_special_tokens"
DIMENSIONS = "dimensions"
TRUNCATE = "truncate_prompt_tokens"
FLAGS = {
    SPECIAL_TOKENS: SPECIAL_TOKENS,
    "stream": STREAM,
    "streaming": STREAM,
    "exclude_input_in_output": EXCLUDE,
    "sampling_param_exclude_input_from_output": EXCLUDE,
} | {name: name for name in OUTPUT_FLAGS}
"""Boolean inputs, also taken as request parameters, to what they set."""

NEUTRAL = {
    "beam_width": (INT, 1),
    "sampling_param_best_of": (INT, 1),
    "length_penalty": (FLOAT, 1.0),
    "return_context_logits": (BOOL, False),
    "return_generation_logits": (BOOL, False),
    "return_perf_metrics": (BOOL, False),
}
"""Inputs that clients send for features not offered here: only this value is accepted."""

IGNORED = {"pad_id": INT, "return_stop_reason": BOOL, "return_usage": BOOL}
"""Inputs without a meaning here.

A prompt is never padded, and what the others ask for always comes, as response parameters.
"""

INPUT_LENGTHS = "input_lengths"
IMAGE = "image"

TEXT_INPUTS: dict[str, Kind] = (
    {name: TEXT for name, prompt in PROMPTS.items() if prompt == "text_input"}
    | {"input_ids": INTS, INPUT_LENGTHS: INT, "messages": JSON, JSON_INPUT: JSON}
    | dict.fromkeys(FLAGS, BOOL)
    | SAMPLING_TENSORS
    | {name: kind for name, (kind, _) in NEUTRAL.items()}
    | GUIDE_INPUTS
    | {TRUNCATE: INT, DIMENSIONS: INT}
    | IGNORED
)
"""Every accepted input tensor."""


class OutputSelection(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's responses look like.

    `outputs` are the names sent, in the order of OUTPUTS: switched on, and asked for unless the
    request names no outputs. `typed` mirrors typed contents; `batched` answers [1, n] shapes.
    """

    outputs: tuple[str, ...] = ("text_output",)
    typed: bool = False
    batched: bool = False
