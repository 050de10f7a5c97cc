"""The token contract, front door to worker: `input_ids` in, `output_ids` out, no text.

Any KServe client may speak it and gets one response per step and request. A front door marks its
requests with slots (see wire.frames) and cancels them on the stream they came on. Every input but
`input_ids` is optional; the sampling parameters are those of wire.sampling_inputs.
"""

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from runtime.errors import InternalError, InvalidRequest
from wire.generate import Usage
from wire.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from wire.logprobs import finite
from wire.parameters import (
    FINAL,
    PINNED_WORKER,
    RANK,
    int_parameter,
    natural_parameter,
    plain_parameter,
    read_parameters,
    read_usage,
    set_parameter,
    write_parameters,
    write_usage,
)
from wire.pooling import Pooling
from wire.sampling_inputs import JSON_INPUT, SAMPLING_TENSORS, read_sampling, sampling_json
from wire.tensors import (
    INTEGERS,
    Tensor,
    add_output,
    decode_inputs,
    decode_outputs,
    encode_bytes,
)
from wire.tokens import FinishReason, Position, TokenDelta, TokenLogprob, TokenRequest
from wire.vectors import FLOAT32, vector

SLOT = "penstock_slot"
CANCEL = "penstock_cancel"
POOLING = "penstock_pooling"
"""Request parameter: a Pooling as JSON."""

EMBEDDING = "embedding"
_CHOICE = "choice"
_STOP_REASON = "stop_reason"
_TRACEPARENT = "traceparent"
_QUEUED_S = "queued_s"
_FINISH = {reason.label: reason for reason in FinishReason}
_Input = ModelInferRequest.InferInputTensor


class TokenResponse(NamedTuple):
    """One decoded response of the token contract; `usage` comes with the final one."""

    request_id: str
    delta: TokenDelta
    final: bool
    usage: Usage | None


def encode_token_request(
    request: TokenRequest, model: str, *, slot: int | None = None
) -> ModelInferRequest:
    """Write a request for a worker; `slot` marks it as one of a multiplexed stream."""
    ids = request.token_ids
    message = ModelInferRequest(
        model_name=model,
        id=request.request_id,
        inputs=[
            _Input(name="input_ids", datatype="INT32", shape=(len(ids),)),
            _Input(name=JSON_INPUT, datatype="BYTES", shape=(1,)),
        ],
        raw_input_contents=[
            _int32(ids),
            encode_bytes([sampling_json(request.sampling)]),
        ],
    )
    write_parameters(
        message.parameters,
        lora_name=request.lora_name,
        priority=request.priority,
        cache_salt=request.cache_salt,
        session_id=request.session_id,
    )
    if request.data_parallel_rank is not None:
        set_parameter(message.parameters, RANK, request.data_parallel_rank)
    if request.traceparent is not None:
        set_parameter(message.parameters, _TRACEPARENT, request.traceparent)
    if request.pinned_worker is not None:
        set_parameter(message.parameters, PINNED_WORKER, request.pinned_worker)
    if request.pooling is not None:
        set_parameter(message.parameters, POOLING, msgspec.json.encode(request.pooling).decode())
    if slot is not None:
        set_parameter(message.parameters, SLOT, slot)
    return message


def decode_token_request(message: ModelInferRequest) -> TokenRequest:
    """Read a request: input_ids INT32/INT64/UINT32 [k] or [1, k], k >= 1.

    Raises InvalidRequest naming the field.
    """
    tensors = decode_inputs(message)
    for name in tensors:
        if name not in SAMPLING_TENSORS and name not in ("input_ids", JSON_INPUT):
            raise InvalidRequest(f"unknown input {name!r}", param=name)
    if "input_ids" not in tensors:
        raise InvalidRequest("input_ids: missing", param="input_ids")
    parameters = read_parameters(message.parameters)
    sampling, lora_name = read_sampling(tensors, parameters.values)
    return TokenRequest(
        request_id=message.id,
        token_ids=read_token_ids(tensors["input_ids"]),
        sampling=sampling,
        lora_name=lora_name or parameters.lora_name,
        priority=parameters.priority,
        cache_salt=parameters.cache_salt,
        session_id=parameters.session_id,
        data_parallel_rank=natural_parameter(message.parameters, RANK),
        traceparent=_text(message.parameters, _TRACEPARENT),
        pinned_worker=_text(message.parameters, PINNED_WORKER) or None,
        pooling=_pooling(_text(message.parameters, POOLING)),
    )


def _pooling(text: str | None) -> Pooling | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Pooling)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{POOLING}: {error}", param=POOLING) from None


def _int32(ids: Sequence[int]) -> bytes:
    column = ids if isinstance(ids, array) else array("i", ids)
    if sys.byteorder == "big":
        column = array("i", column)
        column.byteswap()
    return column.tobytes()


def read_token_ids(tensor: Tensor) -> "array[int]":
    """The ids of a prompt tensor [k] or [1, k], int32; raises InvalidRequest when it holds none."""
    name = tensor.name
    if tensor.datatype not in INTEGERS:
        raise InvalidRequest(
            f"tensor {name!r}: expected INT32 or INT64, got {tensor.datatype}", param=name
        )
    shape = tensor.shape
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise InvalidRequest(
            f"tensor {name!r}: expected shape [-1] or [1,-1], got {list(shape)}", param=name
        )
    ids = tensor.values.ravel()
    if not len(ids):
        raise InvalidRequest(f"{name}: empty prompt", param=name)
    if ids.min() < 0 or ids.max() > 2**31 - 1:
        raise InvalidRequest(f"{name}: a token id is out of range", param=name)
    return array("i", ids.astype(np.int32).tobytes())


def request_slot(message: ModelInferRequest) -> int | None:
    """The slot of a multiplexed request; raises InvalidRequest when it is no uint32."""
    slot = natural_parameter(message.parameters, SLOT)
    if slot is not None and slot >= 2**32:
        raise InvalidRequest(f"{SLOT}: {slot} is out of range", param=SLOT)
    return slot


def encode_cancel(slot: int) -> ModelInferRequest:
    """Ask, on a multiplexed stream, to end the request in `slot`.

    The slot's end is an error row Cancelled, unless its own end was already on its way.
    """
    message = ModelInferRequest()
    set_parameter(message.parameters, SLOT, slot)
    set_parameter(message.parameters, CANCEL, True)
    return message


def is_cancel(message: ModelInferRequest) -> bool:
    """Whether this is a cancel rather than a request."""
    return CANCEL in message.parameters and message.parameters[CANCEL].bool_param


def encode_token_response(
    *, model: str, request_id: str, delta: TokenDelta, final: bool, usage: Usage | None
) -> ModelInferResponse:
    """Write one delta: output_ids INT32 [1, k], finish_reason BYTES [1] ("None" until the end).

    Log probabilities are BYTES [1] JSON: a list per token of {token id: {logprob, rank}}.
    An embedding is FP32 [dimensions]. Parameters: `triton_final_response`, `choice` when not 0,
    `stop_reason`, token counts, and `queued_s` on the first.
    """
    message = ModelInferResponse(model_name=model, model_version="1", id=request_id)
    ids = array("i", delta.token_ids)
    add_output(message, "output_ids", "INT32", (1, len(ids)), ids)
    finish = delta.finish_reason.label if delta.finish_reason is not None else "None"
    add_output(message, "finish_reason", "BYTES", (1,), [finish])
    for name, positions in (
        ("logprobs", delta.logprobs),
        ("prompt_logprobs", delta.prompt_logprobs),
    ):
        if positions is not None:
            add_output(message, name, "BYTES", (1,), [_logprobs_json(positions)])
    if delta.embedding is not None:
        values = vector(delta.embedding)
        add_output(message, EMBEDDING, "FP32", values.shape, values.tolist())
    parameters = message.parameters
    set_parameter(parameters, FINAL, final)
    if delta.index:
        set_parameter(parameters, _CHOICE, delta.index)
    if delta.stop_reason is not None:
        set_parameter(parameters, _STOP_REASON, delta.stop_reason)
    if delta.cached_tokens is not None:
        set_parameter(parameters, "cached_tokens", delta.cached_tokens)
    if delta.queued_s is not None:
        set_parameter(parameters, _QUEUED_S, delta.queued_s)
    if usage is not None:
        write_usage(parameters, usage)
    return message


def decode_token_response(message: ModelInferResponse) -> TokenResponse:
    """Read what `encode_token_response` wrote; raises InternalError for anything else."""
    tensors = decode_outputs(message)
    parameters = message.parameters
    try:
        finish = tensors["finish_reason"].values.ravel().tolist()[0].decode()
        delta = TokenDelta(
            index=int_parameter(parameters, _CHOICE) or 0,
            token_ids=tensors["output_ids"].values.ravel().tolist(),
            finish_reason=None if finish == "None" else _FINISH[finish],
            stop_reason=plain_parameter(parameters, _STOP_REASON),
            logprobs=_read_logprobs(tensors.get("logprobs")),
            prompt_logprobs=_read_logprobs(tensors.get("prompt_logprobs")),
            cached_tokens=int_parameter(parameters, "cached_tokens"),
            queued_s=plain_parameter(parameters, _QUEUED_S),
            embedding=_read_vector(tensors.get(EMBEDDING)),
        )
    except (KeyError, IndexError, ValueError, AttributeError, msgspec.DecodeError) as error:
        raise InternalError(f"malformed response of a worker: {error!r}") from error
    return TokenResponse(
        request_id=message.id,
        delta=delta,
        final=plain_parameter(parameters, FINAL) is True,
        usage=read_usage(parameters),
    )


class _Entry(msgspec.Struct, frozen=True):
    logprob: float
    rank: int | None = None


_decode_positions = msgspec.json.Decoder(list[dict[int, _Entry]]).decode


def _logprobs_json(positions: list[Position]) -> bytes:
    return msgspec.json.encode(
        [{it.token_id: _Entry(finite(it.logprob), it.rank) for it in pos} for pos in positions]
    )


def _read_logprobs(tensor: Tensor | None) -> list[Position] | None:
    if tensor is None:
        return None
    return [
        [TokenLogprob(token_id, it.logprob, it.rank) for token_id, it in position.items()]
        for position in _decode_positions(tensor.values.ravel().tolist()[0])
    ]


def _read_vector(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.values.astype(FLOAT32).tobytes()


def _text(parameters: Mapping[str, InferParameter], name: str) -> str | None:
    value = plain_parameter(parameters, name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name}: expected a string", param=name)
    return value
