"""The text contract's requests: a ModelInferRequest to a GenerateRequest, and back.

What is accepted and why: Triton's vLLM backend (src/model.py of triton-inference-server/
vllm_backend), with the names of TensorRT-LLM's and Dynamo's clients; see wire.text_inputs.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.errors import InvalidRequest, Unsupported, UnsupportedValue
from runtime.rpc import CallInfo
from runtime.turns import Steps
from wire.generate import GenerateRequest
from wire.guided_decoding import with_guide
from wire.inference_pb2 import ModelInferRequest
from wire.parameters import (
    EXPLAIN,
    PINNED_WORKER,
    RANK,
    natural_parameter,
    plain_parameter,
    read_parameters,
    set_parameter,
    write_parameters,
)
from wire.pooling import Pooling
from wire.sampling_inputs import (
    BOOL,
    INT,
    JSON_INPUT,
    TEXT,
    read_sampling,
    sampling_json,
    tensor_value,
)
from wire.tensors import Tensor, add_input, decode_inputs_by_parts, is_typed
from wire.text_chat import chat_json, read_chat
from wire.text_inputs import (
    DIMENSIONS,
    EXCLUDE,
    FLAGS,
    IMAGE,
    INPUT_LENGTHS,
    NEEDS_LOGPROBS,
    NEUTRAL,
    OUTPUT_FLAGS,
    OUTPUTS,
    PROMPTS,
    SPECIAL_TOKENS,
    STREAM,
    TEXT_INPUTS,
    TRUNCATE,
    OutputSelection,
)
from wire.token_contract import EMBEDDING, read_token_ids

__all__ = ["OutputSelection", "decode_text_request", "encode_text_request"]

_OF_EMBEDDINGS = frozenset((EMBEDDING, "num_input_tokens"))

ECHO = "penstock_echo"
"""Request parameter of our own gateway: the prompt comes first even where Triton refuses it."""


def decode_text_request(
    message: ModelInferRequest, info: CallInfo, *, streaming_rpc: bool
) -> Steps[tuple[GenerateRequest, OutputSelection]]:
    """Read a client's request and what its answer shall hold.

    `request_id` is the client's own and may be empty or repeat; `timeout_s` is its `timeout`
    parameter and `deadline_s` the rpc's deadline. Raises InvalidRequest naming the field, or
    Unsupported.
    """
    tensors = yield from decode_inputs_by_parts(message)
    _check_names(tensors)
    parameters = read_parameters(message.parameters)
    prompt = _prompt_tensor(tensors)
    sampling, lora_name = read_sampling(tensors, parameters.values)
    sampling = with_guide(sampling, tensors)
    flags = _flags(tensors, parameters.values)
    stream = flags.get(STREAM, False)
    _check_stream(flags, stream=stream, streaming_rpc=streaming_rpc)
    outputs = _outputs(message, flags)
    if sampling.logprobs is None and not NEEDS_LOGPROBS.isdisjoint(outputs):
        sampling = msgspec.structs.replace(sampling, logprobs=0)
    if sampling.prompt_logprobs is None and "prompt_logprobs" in outputs:
        sampling = msgspec.structs.replace(sampling, prompt_logprobs=0)
    prompt_fields = yield from _prompt_fields(prompt, tensors)
    echo = not stream and not flags.get(EXCLUDE, False) and "messages" not in prompt_fields
    echo = echo and EMBEDDING not in outputs
    request = GenerateRequest(
        request_id=message.id,
        model=message.model_name,
        sampling=sampling,
        stream=stream,
        echo=echo or plain_parameter(message.parameters, ECHO) is True,
        lora_name=lora_name or parameters.lora_name,
        priority=parameters.priority,
        cache_salt=parameters.cache_salt,
        session_id=parameters.session_id,
        session_ends=parameters.session_ends,
        timeout_s=parameters.timeout_s,
        deadline_s=info.deadline_s,
        endpoint=info.method,
        traceparent=info.metadata.get("traceparent"),
        principal=info.principal,
        pinned_worker=plain_parameter(message.parameters, PINNED_WORKER) or None,
        data_parallel_rank=natural_parameter(message.parameters, RANK),
        explain_route=bool(plain_parameter(message.parameters, EXPLAIN)),
        add_special_tokens=flags.get(SPECIAL_TOKENS, True),
        truncate_prompt_tokens=_number(TRUNCATE, -1, tensors, parameters.values),
        pooling=_pooling(outputs, tensors, parameters.values),
        separate_reasoning="reasoning_output" in outputs,
        separate_tool_calls="tool_calls" in outputs,
        **prompt_fields,
    )
    selection = OutputSelection(
        outputs=outputs, typed=is_typed(message), batched=len(prompt.shape) == 2
    )
    return request, selection


def encode_text_request(request: GenerateRequest, selection: OutputSelection) -> ModelInferRequest:
    """Write a request as a client does; `deadline_s` travels as the rpc's deadline, not in it.

    Raises InvalidRequest for a negative priority, which the protocol has no room for.
    """
    message = ModelInferRequest(model_name=request.model, id=request.request_id)
    lead = (1,) if selection.batched else ()

    def add(name: str, datatype: str, values: Sequence[Any]) -> None:
        add_input(message, name, datatype, (*lead, len(values)), values, typed=selection.typed)

    for name, datatype, values in _prompt_inputs(request):
        add(name, datatype, values)
    add(JSON_INPUT, "BYTES", [sampling_json(request.sampling)])
    if request.stream:
        add(STREAM, "BOOL", [True])
    elif not request.echo:
        add(EXCLUDE, "BOOL", [True])
    if request.echo and (request.stream or request.messages is not None):
        set_parameter(message.parameters, ECHO, True)
    for flag in _flags_for(selection.outputs):
        add(flag, "BOOL", [True])
    if "text_output" not in selection.outputs:
        # An empty list would ask for everything; an output that is off adds nothing.
        for name in selection.outputs or ("finish_reason",):
            message.outputs.add(name=name)
    write_parameters(
        message.parameters,
        lora_name=request.lora_name,
        priority=request.priority,
        cache_salt=request.cache_salt,
        session_id=request.session_id,
        session_ends=request.session_ends,
        timeout_s=request.timeout_s,
    )
    _write_routing(message, request)
    return message


def _prompt_inputs(request: GenerateRequest) -> list[tuple[str, str, Sequence[Any]]]:
    """The tensors that say what the prompt is: their names, datatypes and values."""
    inputs: list[tuple[str, str, Sequence[Any]]] = []
    if request.pooling is not None and request.pooling.dimensions is not None:
        inputs.append((DIMENSIONS, "INT32", [request.pooling.dimensions]))
    if request.messages is not None:
        inputs.append(("messages", "BYTES", [chat_json(request)]))
    elif request.prompt_token_ids is not None:
        inputs.append(("input_ids", "INT32", request.prompt_token_ids))
    else:
        inputs.append(("text_input", "BYTES", [(request.prompt or "").encode()]))
    if not request.add_special_tokens:
        inputs.append((SPECIAL_TOKENS, "BOOL", [False]))
    if request.truncate_prompt_tokens is not None:
        tokens = request.truncate_prompt_tokens
        inputs.append((TRUNCATE, "INT32" if tokens < 2**31 else "INT64", [tokens]))
    return inputs


def _write_routing(message: ModelInferRequest, request: GenerateRequest) -> None:
    for name, value in (
        (PINNED_WORKER, request.pinned_worker),
        (RANK, request.data_parallel_rank),
        (EXPLAIN, request.explain_route or None),
    ):
        if value is not None:
            set_parameter(message.parameters, name, value)


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    if IMAGE in tensors:
        raise Unsupported("image: this model takes no images", param=IMAGE)
    for name, tensor in tensors.items():
        if name not in TEXT_INPUTS:
            raise InvalidRequest(f"unknown input {name!r}", param=name)
        if name in NEUTRAL:
            kind, neutral = NEUTRAL[name]
            if tensor_value(tensor, kind) != neutral:
                raise Unsupported(f"{name}: only {neutral} is offered", param=name)


def _prompt_tensor(tensors: Mapping[str, Tensor]) -> Tensor:
    given = [name for name in PROMPTS if name in tensors]
    if not given:
        raise InvalidRequest("text_input: missing (or input_ids, or messages)", param="text_input")
    if len(given) > 1:
        raise InvalidRequest(f"{given[1]}: given beside {given[0]}; send one", param=given[1])
    return tensors[given[0]]


def _prompt_fields(prompt: Tensor, tensors: Mapping[str, Tensor]) -> Steps[dict[str, Any]]:
    match PROMPTS[prompt.name]:
        case "input_ids":
            return {"prompt_token_ids": _token_ids(prompt, tensors.get(INPUT_LENGTHS))}
        case "messages":
            return (yield from read_chat(prompt))
        case _:
            if len(prompt.shape) > 2:
                raise InvalidRequest(
                    f"tensor {prompt.name!r}: expected shape [1] or [1,1]", param=prompt.name
                )
            return {"prompt": tensor_value(prompt, TEXT)}


def _token_ids(prompt: Tensor, lengths: Tensor | None) -> "array[int]":
    ids = read_token_ids(prompt)
    if lengths is not None and (length := tensor_value(lengths, INT)) != len(ids):
        raise InvalidRequest(
            f"{INPUT_LENGTHS}: {length} for {len(ids)} input_ids", param=INPUT_LENGTHS
        )
    return ids


def _flags(tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> dict[str, bool]:
    flags = {FLAGS[name]: _bool(name, it) for name, it in parameters.items() if name in FLAGS}
    for name, tensor in tensors.items():
        if name in FLAGS:
            flags[FLAGS[name]] = _bool(name, tensor_value(tensor, BOOL))
    return flags


def _number(
    name: str, least: int, tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> int | None:
    value = parameters.get(name)
    if name in tensors:
        value = tensor_value(tensors[name], INT)
    if value is None:
        return None
    try:
        number = msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        number = least - 1
    if number < least:
        raise InvalidRequest(f"{name}: expected a number, {least} or more", param=name)
    return number


def _pooling(
    outputs: Sequence[str], tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> Pooling | None:
    dimensions = _number(DIMENSIONS, 1, tensors, parameters)
    if EMBEDDING in outputs:
        return Pooling(dimensions=dimensions)
    if dimensions is not None:
        raise InvalidRequest(f"{DIMENSIONS}: for an embedding only", param=DIMENSIONS)
    return None


def _bool(name: str, value: Any) -> bool:
    try:
        return msgspec.convert(value, bool, strict=False)
    except msgspec.ValidationError:
        raise InvalidRequest(f"{name}: expected a boolean", param=name) from None


def _check_stream(flags: Mapping[str, bool], *, stream: bool, streaming_rpc: bool) -> None:
    if stream and not streaming_rpc:
        raise InvalidRequest("stream: use ModelStreamInfer to stream", param=STREAM)
    if stream and flags.get(EXCLUDE) is False:
        raise InvalidRequest(
            "Error generating stream: When streaming, `exclude_input_in_output` = False is not "
            "allowed.",
            param=EXCLUDE,
        )


def _flags_for(outputs: Sequence[str]) -> list[str]:
    return [flag for flag, switched in OUTPUT_FLAGS.items() if not {*switched}.isdisjoint(outputs)]


def _requested(output: ModelInferRequest.InferRequestedOutputTensor) -> str:
    name = output.name
    if name not in OUTPUTS:
        raise InvalidRequest(f"unknown output {name!r}", param=name)
    if plain_parameter(output.parameters, "classification"):
        raise UnsupportedValue(f"output {name!r}: classification is not offered", param=name)
    if "shared_memory_region" in output.parameters:
        raise Unsupported(f"output {name!r}: shared memory is not offered", param=name)
    return name


def _outputs(message: ModelInferRequest, flags: Mapping[str, bool]) -> tuple[str, ...]:
    switched_on = {"text_output"}
    for flag, names in OUTPUT_FLAGS.items():
        if flags.get(flag):
            switched_on |= {*names}
    requested = {_requested(output) for output in message.outputs}
    if requested:
        # Some clients name all that the metadata lists, so naming it beside text is no wish for it.
        switched_on |= {EMBEDDING} if requested <= _OF_EMBEDDINGS else set()
        switched_on &= requested
    if EMBEDDING in switched_on:
        switched_on &= _OF_EMBEDDINGS
    return tuple(name for name in OUTPUTS if name in switched_on)
