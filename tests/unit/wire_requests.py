"""Requests as clients write them, and what they decode to."""

import json
from typing import Any

import pytest

from runtime.errors import InvalidRequest
from runtime.rpc import CallInfo
from runtime.turns import at_once
from wire.generate import GenerateRequest
from wire.inference_pb2 import ModelInferRequest
from wire.sampling import Sampling
from wire.tensors import add_input
from wire.text_request import OutputSelection, decode_text_request

INFO = CallInfo(method="", deadline_s=12.5)
DATATYPES = {bytes: "BYTES", str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}
FIELDS = {bool: "bool", int: "int64", str: "string", float: "double"}


def ask(
    parameters: Any = None,
    outputs: Any = (),
    *,
    batched: Any = False,
    typed: Any = False,
    **inputs: Any,
) -> ModelInferRequest:
    """A request whose inputs have the datatype of their Python values; `text_input` by default."""
    if not inputs.keys() & {"text_input", "prompt", "QUERY", "input_ids", "messages"}:
        inputs = {"text_input": "hi"} | inputs
    message = ModelInferRequest(model_name="m", id="r")
    for name, value in inputs.items():
        values = value if isinstance(value, list) else [value]
        datatype = DATATYPES[type(values[0])]
        shape = [1, len(values)] if batched else [len(values)]
        add_input(message, name, datatype, shape, values, typed=typed)
    for name, value in (parameters or {}).items():
        setattr(message.parameters[name], f"{FIELDS[type(value)]}_param", value)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def sampling_json(**values: Any) -> str:
    return json.dumps(values)


def decode(
    message: ModelInferRequest, *, streaming_rpc: bool = True
) -> tuple[GenerateRequest, OutputSelection]:
    return at_once(decode_text_request(message, INFO, streaming_rpc=streaming_rpc))


def request_of(message: ModelInferRequest) -> GenerateRequest:
    return decode(message)[0]


def sampling_of(message: ModelInferRequest) -> Sampling:
    return decode(message)[0].sampling


def outputs_of(message: ModelInferRequest) -> tuple[str, ...]:
    return decode(message)[1].outputs


def refusal(message: ModelInferRequest, *, streaming_rpc: bool = True) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(message, streaming_rpc=streaming_rpc)
    return caught.value
