"""KServe's JSON to a ModelInferRequest, so that HTTP and gRPC requests meet one decoder; pure.

Forms: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md (tensors behind
the JSON) and extension_generate.md (a text and named values in place of tensors).
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway_http.openai import decode_json
from runtime.errors import InvalidRequest
from wire.inference_pb2 import InferParameter, ModelInferRequest
from wire.nesting import check_nesting
from wire.parameters import MAX_INT64, set_parameter
from wire.sampling_inputs import Kind
from wire.tensors import FLOATS, INTEGERS, add_input
from wire.text_inputs import IMAGE, INPUT_IDS, STREAM, TEXT_INPUTS

BINARY_SIZE = "binary_data_size"
_BINARY = "binary_data"
_BINARY_ALL = "binary_data_output"
_SHARED = "shared_memory_region"
_MAX_UINT64 = 2**64 - 1
_ELEMENTS: dict[str, tuple[frozenset[type], str]] = (
    {"BOOL": (frozenset({bool}), "booleans"), "BYTES": (frozenset({str}), "texts")}
    | dict.fromkeys(INTEGERS, (frozenset({int}), "whole numbers"))
    | dict.fromkeys(FLOATS, (frozenset({int, float}), "numbers"))
)
_DATATYPES: dict[type, str] = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
_NONE: "Mapping[str, array[int]]" = {}
_Parameters = Mapping[str, InferParameter]


class InputBody(msgspec.Struct, frozen=True, kw_only=True):
    """One input tensor; `data` is flat or nested, row-major, or stands behind the JSON."""

    name: str
    datatype: str
    shape: list[Annotated[int, Meta(ge=0, le=MAX_INT64)]]
    parameters: dict[str, Any] | None = None
    data: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "array"})] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class OutputBody(msgspec.Struct, frozen=True, kw_only=True):
    """One requested output."""

    name: str
    parameters: dict[str, Any] | None = None


class InferBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v2/models/NAME/infer."""

    inputs: list[InputBody]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[OutputBody] | None = None

    def wants_binary(self, output: str) -> bool:
        """Whether the client wants that output behind the JSON."""
        for asked in self.outputs or ():
            if asked.name == output and _BINARY in (asked.parameters or {}):
                return (asked.parameters or {})[_BINARY] is True
        return (self.parameters or {}).get(_BINARY_ALL) is True


def infer_message(
    body: InferBody,
    behind: bytes,
    model: str,
    version: str,
    read: "Mapping[str, array[int]]" = _NONE,
) -> ModelInferRequest:
    """The request as gRPC has it, all tensors raw; `behind` are the bytes after the JSON.

    `read` has the elements of tensors whose data has been read, by their names.
    Raises InvalidRequest naming the tensor or parameter.
    """
    message = ModelInferRequest(model_name=model, model_version=version, id=body.id or "")
    _add_parameters(message.parameters, body.parameters)
    at = 0
    for tensor in body.inputs:
        parameters = dict(tensor.parameters or {})
        size = parameters.pop(BINARY_SIZE, None)
        if size is not None:
            raw = behind[at : at + _checked_size(tensor, size, len(behind) - at)]
            at += len(raw)
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            message.raw_input_contents.append(raw)
        elif _SHARED in parameters:
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        else:
            values = read[tensor.name] if tensor.name in read else _elements(tensor)
            add_input(message, tensor.name, tensor.datatype, tensor.shape, values)
        _add_parameters(message.inputs[-1].parameters, parameters)
    if at != len(behind):
        raise InvalidRequest(
            f"{len(behind) - at} bytes behind the JSON belong to no input", param=BINARY_SIZE
        )
    for output in body.outputs or ():
        asked = message.outputs.add(name=output.name)
        _add_parameters(asked.parameters, output.parameters)
    return message


def generate_message(
    body: Mapping[str, Any],
    model: str,
    version: str,
    *,
    stream: bool,
    ids: "array[int] | None" = None,
) -> ModelInferRequest:
    """The request of Triton's generate extension, tensors and parameters by name.

    What has an input's name becomes that tensor, wherever it stands; null is "not given". All else
    is a parameter. `stream` is the default; `ids` stand for those of the body. Raises
    InvalidRequest naming the field.
    """
    request_id = body.get("id") or ""
    if not isinstance(request_id, str):
        raise InvalidRequest("id: expected a text", param="id")
    message = ModelInferRequest(model_name=model, model_version=version, id=request_id)
    nested = body.get("parameters") or {}
    if not isinstance(nested, dict):
        raise InvalidRequest("parameters: expected an object", param="parameters")
    given = nested | {name: it for name, it in body.items() if name not in ("id", "parameters")}
    if stream and not {STREAM, "streaming"} & given.keys():
        given[STREAM] = True
    for name, value in given.items():
        if value is None:
            continue
        if name == INPUT_IDS and ids is not None:
            add_input(message, name, "INT32", (len(ids),), ids)
        elif name in TEXT_INPUTS:
            _add_named(message, name, TEXT_INPUTS[name], value)
        elif name == IMAGE:
            message.inputs.add(name=IMAGE, datatype="BYTES", shape=[0])
            message.raw_input_contents.append(b"")
        else:
            _add_parameters(message.parameters, {name: value})
    return message


def _add_named(message: ModelInferRequest, name: str, kind: Kind, value: Any) -> None:
    is_whole = kind.single or isinstance(value, dict)
    if kind.json and is_whole and not isinstance(value, str):
        check_nesting(value, name)
        add_input(message, name, "BYTES", (1,), [msgspec.json.encode(value)])
        return
    values = value if isinstance(value, list) else [value]
    datatype = _datatype_of(name, values, kind)
    add_input(message, name, datatype, (len(values),), values)


def _datatype_of(name: str, values: Sequence[Any], kind: Kind) -> str:
    kinds = set(map(type, values))
    if kinds == {int, float}:
        return "FP64"
    if not kinds:
        return kind.datatype
    found = _DATATYPES.get(kinds.pop()) if len(kinds) == 1 else None
    if found is None:
        raise InvalidRequest(f"{name}: expected one value, or a list of one type", param=name)
    is_huge = found == "INT64" and max(values) > MAX_INT64
    return "UINT64" if is_huge else found


def _add_parameters(target: _Parameters, given: Mapping[str, Any] | None) -> None:
    for name, value in (given or {}).items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(f"{name}: expected a text, a number or a boolean", param=name)
        if type(value) is int and not -MAX_INT64 - 1 <= value <= MAX_INT64:
            if not 0 <= value <= _MAX_UINT64:
                raise InvalidRequest(f"{name}: {value} is out of range", param=name)
            target[name].uint64_param = value
        else:
            set_parameter(target, name, value)


def _checked_size(tensor: InputBody, size: Any, left: int) -> int:
    if type(size) is not int or size < 0:
        raise _bad(tensor, f"{BINARY_SIZE} must be a whole number, not negative")
    if tensor.data is not msgspec.UNSET:
        raise _bad(tensor, f"data beside {BINARY_SIZE}; use one of the two")
    if size > left:
        raise _bad(tensor, f"{BINARY_SIZE} is {size}, but only {left} bytes are left of the body")
    return size


def _elements(tensor: InputBody) -> list[Any]:
    if tensor.data is msgspec.UNSET:
        raise _bad(tensor, "no data")
    try:
        flat = _flat(decode_json(bytes(tensor.data), list[Any]))
    except InvalidRequest as error:
        raise _bad(tensor, f"data: {error.message}") from None
    allowed, expected = _ELEMENTS.get(tensor.datatype, (None, ""))
    if allowed is not None and not set(map(type, flat)) <= allowed:
        raise _bad(tensor, f"{tensor.datatype} data must be {expected}")
    return flat


def _flat(data: list[Any]) -> list[Any]:
    """The leaves of nested lists in order, in one pass however deep they are."""
    if list not in set(map(type, data)):
        return data
    leaves: list[Any] = []
    open_lists = [iter(data)]
    while open_lists:
        for item in open_lists[-1]:
            if isinstance(item, list):
                open_lists.append(iter(item))
                break
            leaves.append(item)
        else:
            open_lists.pop()
    return leaves


def _bad(tensor: InputBody, what: str) -> InvalidRequest:
    return InvalidRequest(f"tensor {tensor.name!r}: {what}", param=tensor.name)
