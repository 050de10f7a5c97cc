"""The text contract's responses: a GenerateDelta to a ModelInferResponse, and back.

Shapes, with n choices (and [1, ...] in front for clients that sent [1, 1]): text_output,
finish_reason, logprobs, cumulative_logprob, cum_log_probs, num_output_tokens, reasoning_output and
tool_calls [n]; num_input_tokens and prompt_logprobs [1]; embedding
[dimensions]. output_ids is [k] for one choice and
[n, k] for more, k being the longest and -1 the padding; output_log_probs is [n, k], with nan for
padding. tool_calls are JSON lists of what is new, in the form of OpenAI's streamed calls. A choice
with nothing new has "", "None", null, [], nan and 0. Forms and meanings are those of Triton's vLLM
backend, and of TensorRT-LLM's for its own names; the counts are of this response.
"""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from runtime.errors import InternalError, ServingError, from_status
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, TokenText, Usage
from wire.inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from wire.logprobs import finite
from wire.parameters import (
    FINAL,
    int_parameter,
    plain_parameter,
    read_route,
    read_usage,
    set_parameter,
    write_route,
    write_usage,
)
from wire.tensors import Tensor, add_output, decode_outputs, encode_bytes
from wire.text_inputs import OUTPUTS, OutputSelection
from wire.tool_calls import read_tool_calls, tool_calls_json
from wire.vectors import FLOAT32, vector

_REASON = "penstock_reason"
_CODE = "penstock_code"
_PARAM = "penstock_param"
_STOP_REASON = "stop_reason"
_UNFINISHED = ("None", "")
_PADDING = -1
_Output = ModelInferResponse.InferOutputTensor


def encode_text_response(
    request: GenerateRequest,
    selection: OutputSelection,
    delta: GenerateDelta,
    *,
    model_version: str = "1",
) -> ModelInferResponse:
    """Write one response.

    Its parameters: `triton_final_response`; `stop_reason` (of choice i > 0: `stop_reason_i`); on
    the final one `prompt_tokens`, `completion_tokens`, `cached_tokens`; on the first one of a
    request that asked for it where it went (see wire.parameters).
    """
    message = ModelInferResponse(
        model_name=request.model, model_version=model_version, id=request.request_id
    )
    choices = _all_choices(delta.choices, request.sampling.n)
    lead = (1,) if selection.batched else ()
    for name in selection.outputs:
        shape, values = _WRITERS[name](choices, delta)
        if selection.typed:
            add_output(message, name, OUTPUTS[name], (*lead, *shape), values, typed=True)
            continue
        datatype = OUTPUTS[name]
        message.outputs.append(_Output(name=name, datatype=datatype, shape=(*lead, *shape)))
        message.raw_output_contents.append(_PACK[datatype](values))
    message.parameters[FINAL].bool_param = delta.usage is not None
    for choice in delta.choices:
        if choice.stop_reason is not None:
            set_parameter(message.parameters, _stop_reason_name(choice.index), choice.stop_reason)
    if delta.usage is not None:
        write_usage(message.parameters, delta.usage)
    if delta.route is not None:
        write_route(message.parameters, delta.route)
    return message


def stream_response(
    request: GenerateRequest,
    selection: OutputSelection,
    delta: GenerateDelta,
    *,
    model_version: str = "1",
) -> ModelStreamInferResponse:
    """`encode_text_response` as ModelStreamInfer sends it."""
    return ModelStreamInferResponse(
        infer_response=encode_text_response(request, selection, delta, model_version=model_version)
    )


def stream_error(request_id: str, error: ServingError) -> ModelStreamInferResponse:
    """An error in-band: ends the request `request_id`, not the stream.

    Parameters `penstock_reason`, `penstock_code`, `penstock_param` let our own client rebuild it.
    """
    message = ModelStreamInferResponse(
        error_message=error.message or error.reason,
        infer_response=ModelInferResponse(id=request_id),
    )
    parameters = message.infer_response.parameters
    set_parameter(parameters, FINAL, True)
    set_parameter(parameters, _REASON, error.reason)
    set_parameter(parameters, _CODE, int(error.code))
    if error.param is not None:
        set_parameter(parameters, _PARAM, error.param)
    return message


def decode_text_response(
    message: ModelStreamInferResponse | ModelInferResponse,
) -> GenerateDelta:
    """Read one response, ours or another LLM server's; choices with nothing new are left out.

    `TokenText.top` lists every token given, the sampled one too, by rank: cut it to what was asked
    for. Raises the ServingError of an in-band error, and InternalError for a malformed response.
    """
    unary = isinstance(message, ModelInferResponse)
    if isinstance(message, ModelStreamInferResponse):
        if message.error_message:
            raise _in_band_error(message)
        message = message.infer_response
    tensors = decode_outputs(message)
    try:
        choices = _read_choices(message, tensors)
        prompt_tokens = int(_first(tensors, "num_input_tokens", 0))
        prompt_logprobs = _read_logprobs(_first(tensors, "prompt_logprobs", b"null"))
    except (AttributeError, IndexError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise InternalError(f"malformed response: {error}") from error
    usage = read_usage(message.parameters)
    final = usage is not None or _says_final(message, choices, unary=unary)
    if usage is not None:
        prompt_tokens = prompt_tokens or usage.prompt_tokens
    elif final:
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(len(choice.token_ids) for choice in choices),
        )
    kept = [choice for choice in choices if not _is_silent(choice)]
    return GenerateDelta(
        choices=kept,
        prompt_tokens=prompt_tokens,
        usage=usage,
        route=read_route(message.parameters),
        prompt_logprobs=prompt_logprobs,
    )


class _Logprob(msgspec.Struct, frozen=True):
    logprob: float | None
    rank: int | None = None
    decoded_token: str | None = None


_Values = tuple[Sequence[int], list[Any]]
_decode_logprobs = msgspec.json.Decoder(list[dict[int, _Logprob]] | None).decode


def _texts(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [choice.text.encode() for choice in choices]


def _finish_reasons(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [(choice.finish_reason or "None").encode() for choice in choices]


def _output_ids(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    if len(choices) == 1:
        ids = choices[0].token_ids
        return (len(ids),), ids
    longest = max(len(choice.token_ids) for choice in choices)
    padded: list[int] = []
    for choice in choices:
        padded += choice.token_ids
        padded += [_PADDING] * (longest - len(choice.token_ids))
    return (len(choices), longest), padded


def _logprobs(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [_logprobs_json(choice.logprobs) for choice in choices]


def _prompt_logprobs(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (1,), [_logprobs_json(delta.prompt_logprobs)]


def _cumulative(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    values = [choice.cumulative_logprob for choice in choices]
    return (len(choices),), [math.nan if it is None else finite(it) for it in values]


def _token_logprobs(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    rows = [[finite(it.logprob) for it in choice.logprobs or ()] for choice in choices]
    longest = max(map(len, rows))
    padded = [value for row in rows for value in (*row, *[math.nan] * (longest - len(row)))]
    return (len(rows), longest), padded


def _reasoning(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [choice.reasoning.encode() for choice in choices]


def _tool_calls(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [tool_calls_json(choice.tool_calls) for choice in choices]


def _embedding(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    values = vector(choices[0].embedding or b"")
    return values.shape, values.tolist()


def _num_input(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (1,), [delta.prompt_tokens]


def _num_output(choices: Sequence[ChoiceDelta], delta: GenerateDelta) -> _Values:
    return (len(choices),), [len(choice.token_ids) for choice in choices]


_WRITERS: dict[str, Callable[[Sequence[ChoiceDelta], GenerateDelta], _Values]] = {
    "text_output": _texts,
    "finish_reason": _finish_reasons,
    "output_ids": _output_ids,
    "logprobs": _logprobs,
    "prompt_logprobs": _prompt_logprobs,
    "cumulative_logprob": _cumulative,
    "cum_log_probs": _cumulative,
    "output_log_probs": _token_logprobs,
    "num_input_tokens": _num_input,
    "num_output_tokens": _num_output,
    "reasoning_output": _reasoning,
    "tool_calls": _tool_calls,
    "embedding": _embedding,
}
_PACK: dict[str, Callable[[list[Any]], bytes]] = {
    "BYTES": encode_bytes,
    "INT32": lambda values: struct.pack(f"<{len(values)}i", *values),
    "UINT32": lambda values: struct.pack(f"<{len(values)}I", *values),
    "FP32": lambda values: struct.pack(f"<{len(values)}f", *values),
}


def _all_choices(given: Sequence[ChoiceDelta], count: int) -> Sequence[ChoiceDelta]:
    if count == 1 and len(given) == 1:
        return given
    by_index = {choice.index: choice for choice in given}
    return [by_index.get(index) or ChoiceDelta(index=index) for index in range(count)]


def _logprobs_json(tokens: Sequence[TokenText] | None) -> bytes:
    if tokens is None:
        return b"null"
    return msgspec.json.encode(
        [
            {
                it.token_id: _Logprob(_number(it.logprob), it.rank, it.token)
                for it in (token, *token.top)
            }
            for token in tokens
        ]
    )


def _read_choices(message: ModelInferResponse, tensors: dict[str, Tensor]) -> list[ChoiceDelta]:
    texts = [it.decode(errors="replace") for it in _flat(tensors, "text_output")]
    finish = [it.decode() for it in _flat(tensors, "finish_reason")]
    logprobs = [_read_logprobs(it) for it in _flat(tensors, "logprobs")]
    reasoning = [it.decode(errors="replace") for it in _flat(tensors, "reasoning_output")]
    calls = [read_tool_calls(it) for it in _flat(tensors, "tool_calls")]
    cumulative = _flat(tensors, "cumulative_logprob")
    embedding = None
    if "embedding" in tensors:
        embedding = tensors["embedding"].values.astype(FLOAT32).tobytes() or None
    count = max(len(texts), len(finish), len(logprobs), len(cumulative), 1)
    ids = _read_ids(tensors.get("output_ids"), count)
    return [
        ChoiceDelta(
            index=index,
            text=_at(texts, index, ""),
            reasoning=_at(reasoning, index, ""),
            tool_calls=_at(calls, index, []),
            token_ids=_at(ids, index, []),
            logprobs=_at(logprobs, index, None),
            cumulative_logprob=_none_for_nan(_at(cumulative, index, math.nan)),
            finish_reason=_none_for_unfinished(_at(finish, index, "None")),
            stop_reason=plain_parameter(message.parameters, _stop_reason_name(index)),
            embedding=embedding,
        )
        for index in range(count)
    ]


def _read_ids(tensor: Tensor | None, count: int) -> list[list[int]]:
    if tensor is None or tensor.values.size == 0:
        return []
    rows: list[list[int]] = tensor.values.reshape(count, -1).tolist()
    return [[it for it in row if it != _PADDING] for row in rows]


def _read_logprobs(raw: bytes) -> list[TokenText] | None:
    positions = _decode_logprobs(raw)
    return None if positions is None else [_read_position(it) for it in positions if it]


def _read_position(position: dict[int, _Logprob]) -> TokenText:
    tokens = [
        TokenText(
            token_id=token_id,
            token=it.decoded_token or "",
            logprob=math.nan if it.logprob is None else it.logprob,
            rank=it.rank,
        )
        for token_id, it in position.items()
    ]
    top = sorted(tokens, key=lambda it: it.rank or math.inf)
    return msgspec.structs.replace(tokens[0], top=tuple(top))


def _says_final(
    message: ModelInferResponse, choices: Sequence[ChoiceDelta], *, unary: bool
) -> bool:
    if FINAL in message.parameters:
        return message.parameters[FINAL].bool_param
    # Dynamo's server sends no such flag.
    return unary or all(choice.finish_reason is not None for choice in choices)


def _in_band_error(message: ModelStreamInferResponse) -> ServingError:
    parameters = message.infer_response.parameters
    return from_status(
        int_parameter(parameters, _CODE) or 0,
        message.error_message,
        reason=plain_parameter(parameters, _REASON),
        param=plain_parameter(parameters, _PARAM),
    )


def _is_silent(choice: ChoiceDelta) -> bool:
    return not (
        choice.text
        or choice.token_ids
        or choice.logprobs
        or choice.reasoning
        or choice.tool_calls
        or choice.finish_reason is not None
        or choice.embedding is not None
    )


def _flat(tensors: dict[str, Tensor], name: str) -> list[Any]:
    return tensors[name].values.ravel().tolist() if name in tensors else []


def _first(tensors: dict[str, Tensor], name: str, default: Any) -> Any:
    return _at(_flat(tensors, name), 0, default)


def _at(values: Sequence[Any], index: int, default: Any) -> Any:
    return values[index] if index < len(values) else default


def _number(logprob: float) -> float | None:
    """What JSON has for it: null where there is none."""
    return None if math.isnan(logprob) else finite(logprob)


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _none_for_unfinished(value: str) -> str | None:
    return None if value in _UNFINISHED else value


def _stop_reason_name(index: int) -> str:
    return f"{_STOP_REASON}_{index}" if index else _STOP_REASON
