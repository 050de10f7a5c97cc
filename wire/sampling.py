"""How tokens are sampled: vLLM's SamplingParams as they travel, checked before an engine sees them.

Names, ranges and defaults: vllm.sampling_params.SamplingParams of vLLM 0.32.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from runtime.errors import ContextLengthExceeded, InvalidRequest
from wire.nesting import check_nesting

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class RepetitionDetection(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Ends a choice that repeats a pattern of so many tokens `min_count` times in a row."""

    max_pattern_size: Count
    min_count: Annotated[int, Meta(ge=2, le=2**31 - 1)]
    min_pattern_size: Count = 1


class Sampling(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Sampling parameters of one request. `stop` strings are matched by the front door."""

    n: Annotated[int, Meta(ge=1, le=128)] = 1
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] = 1.0
    stop: tuple[Text, ...] | Text = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    bad_words: tuple[Text, ...] = ()
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[tuple[TokenId, ...], Meta(min_length=1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logprob_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=128)] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    structured_outputs: dict[str, Any] | None = None
    repetition_detection: RepetitionDetection | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, however it was written."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop


def make_sampling(values: Mapping[str, Any]) -> Sampling:
    """Build checked parameters; numbers and booleans may come as strings ("16", "0", "true").

    Raises InvalidRequest whose `param` is the offending field.
    """
    try:
        sampling = msgspec.convert(dict(values), Sampling, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    check_nesting(sampling.structured_outputs, "structured_outputs")
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"min_tokens ({sampling.min_tokens}) is over max_tokens ({sampling.max_tokens})",
            param="min_tokens",
        )
    if sampling.n > 1 and sampling.temperature == 0:
        raise InvalidRequest("n must be 1 when temperature is 0", param="n")
    return sampling


def fit_to_context(
    sampling: Sampling, *, prompt_tokens: int, context_length: int, param: str
) -> Sampling:
    """Return `sampling` with `max_tokens` set, at most the room that the prompt leaves.

    Larger limits are cut, as vLLM does it. Raises ContextLengthExceeded, naming the prompt's field
    `param`, when there is no room for one token.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens; the model's context is {context_length} "
            "tokens, and at least one is needed for the answer",
            param=param,
        )
    limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    return msgspec.structs.replace(
        sampling, max_tokens=limit, min_tokens=min(sampling.min_tokens, limit)
    )


def _invalid(text: str) -> InvalidRequest:
    # msgspec words its errors "Expected ... - at `$.field`" or "... unknown field `field`".
    text = text.replace(" - at `key` in `$.", ", in a key - at `$.")
    what, _, path = text.partition(" - at `$.")
    if path:
        path = path.rstrip("`")
        name = re.split(r"[.\[]", path, maxsplit=1)[0]
        return InvalidRequest(f"{path}: {what[0].lower()}{what[1:]}", param=name)
    if "unknown field" in text:
        name = text.rsplit("`", 2)[-2]
        return InvalidRequest(f"unknown sampling parameter {name!r}", param=name)
    return InvalidRequest(text)
