"""KServe tensors: every datatype, raw and typed, both directions, strictly checked.

Raw and typed forms: Open Inference Protocol, "Tensor Data"; BF16 is Triton's addition. Raw is
little endian and row major; a BYTES element is a u32 length and its bytes. FP16 and BF16 have no
typed field. BF16 values are float32 arrays here.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import InternalError, InvalidRequest, Unsupported
from runtime.turns import Steps, at_once
from wire.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

Array = npt.NDArray[Any]
_Header = ModelInferRequest.InferInputTensor | ModelInferResponse.InferOutputTensor


class _Datatype(NamedTuple):
    """How one datatype is stored: little-endian numpy type, typed field ("" for none)."""

    stored: str
    field: str


_DATATYPES = {
    "BOOL": _Datatype("?", "bool_contents"),
    "UINT8": _Datatype("u1", "uint_contents"),
    "UINT16": _Datatype("<u2", "uint_contents"),
    "UINT32": _Datatype("<u4", "uint_contents"),
    "UINT64": _Datatype("<u8", "uint64_contents"),
    "INT8": _Datatype("i1", "int_contents"),
    "INT16": _Datatype("<i2", "int_contents"),
    "INT32": _Datatype("<i4", "int_contents"),
    "INT64": _Datatype("<i8", "int64_contents"),
    "FP16": _Datatype("<f2", ""),
    "FP32": _Datatype("<f4", "fp32_contents"),
    "FP64": _Datatype("<f8", "fp64_contents"),
    "BF16": _Datatype("<u2", ""),
    "BYTES": _Datatype("O", "bytes_contents"),
}
_MAX_RANK = 32
_MAX_TEXTS = 65_536  # of an input; making its array takes 1 ms
_PART = 16_384  # elements, 1 ms of ints in typed contents
_PART_TEXTS = 4096  # the same of raw BYTES
_MAX_ELEMENTS = 2**48
DATATYPES = frozenset(_DATATYPES)
INTEGERS = frozenset(name for name in DATATYPES if "INT" in name)
FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})


class Tensor(NamedTuple):
    """One decoded tensor; `values` has its shape (BYTES: dtype object, elements `bytes`)."""

    name: str
    datatype: str
    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as the peer wrote it."""
        return self.values.shape


def decode_inputs(message: ModelInferRequest) -> dict[str, Tensor]:
    """Decode all inputs by name.

    Raises InvalidRequest naming the tensor for whatever is wrong with it; Unsupported for a tensor
    in shared memory.
    """
    return at_once(decode_inputs_by_parts(message))


def decode_inputs_by_parts(message: ModelInferRequest) -> Steps[dict[str, Tensor]]:
    """Do the same, many thousands of elements by parts."""
    for header in message.inputs:
        if header.datatype == "BYTES" and _element_count(header.name, header.shape) > _MAX_TEXTS:
            raise _bad(header.name, f"more than {_MAX_TEXTS} texts")
    return (yield from _decode_all(message.inputs, message.raw_input_contents))


def decode_outputs(message: ModelInferResponse) -> dict[str, Tensor]:
    """Decode all outputs by name; raises InternalError when the peer wrote them wrongly."""
    try:
        return at_once(_decode_all(message.outputs, message.raw_output_contents))
    except InvalidRequest as error:
        raise InternalError(f"malformed response: {error.message}") from error


def add_input(
    message: ModelInferRequest,
    name: str,
    datatype: str,
    shape: Sequence[int],
    values: Any,
    *,
    typed: bool = False,
) -> None:
    """Append an input; `values` is array-like with as many elements as `shape` says.

    Raises InvalidRequest when `values` do not fit datatype or shape.
    """
    _add(message.inputs.add(), message.raw_input_contents, name, datatype, shape, values, typed)


def add_output(
    message: ModelInferResponse,
    name: str,
    datatype: str,
    shape: Sequence[int],
    values: Any,
    *,
    typed: bool = False,
) -> None:
    """Append an output; the same rules as `add_input`."""
    _add(message.outputs.add(), message.raw_output_contents, name, datatype, shape, values, typed)


def is_typed(message: ModelInferRequest) -> bool:
    """Whether the request carries its values in typed contents."""
    return not message.raw_input_contents and any(_has_contents(it) for it in message.inputs)


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """The raw form of a BYTES tensor."""
    return b"".join([struct.pack("<I", len(it)) + it for it in elements])


def decode_bytes(name: str, raw: bytes) -> Steps[list[bytes]]:
    """The elements of a raw BYTES tensor; raises InvalidRequest for bad framing."""
    elements: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        if len(elements) % _PART_TEXTS == _PART_TEXTS - 1:
            yield
        start = at + 4
        if start > end:
            raise _bad(name, f"{end - at} bytes left over after its last BYTES element")
        at = start + int.from_bytes(raw[at:start], "little")
        if at > end:
            raise _bad(name, f"a BYTES element is {at - end} bytes longer than the data")
        elements.append(raw[start:at])
    return elements


def encode_raw(name: str, datatype: str, values: Any) -> bytes:
    """The raw form of array-like `values`; raises InvalidRequest when they do not fit."""
    if datatype == "BYTES":
        return encode_bytes(_bytes_elements(name, values))
    raw: bytes = _stored(name, datatype, values).tobytes()
    return raw


def decode_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Steps[Array]:
    """The values of a raw tensor; raises InvalidRequest naming it when bytes and shape differ."""
    kind = _datatype(name, datatype)
    count = _element_count(name, shape)
    if datatype == "BYTES":
        return _object_array(name, shape, count, (yield from decode_bytes(name, raw)))
    want = count * np.dtype(kind.stored).itemsize
    if len(raw) != want:
        raise _bad(name, f"shape {list(shape)} of {datatype} needs {want} bytes, got {len(raw)}")
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    stored = np.frombuffer(raw, kind.stored).reshape(shape)
    return _from_bf16(stored) if datatype == "BF16" else stored


def _add(
    header: _Header, raws: Any, name: str, datatype: str, shape: Sequence[int], values: Any,
    typed: bool,
) -> None:  # fmt: skip
    header.name = name
    header.datatype = datatype
    header.shape.extend(shape)
    kind = _datatype(name, datatype)
    count = _element_count(name, shape)
    flat: list[Any] | Array
    if datatype == "BYTES":
        flat = _bytes_elements(name, values)
    else:
        flat = _stored(name, datatype, values).ravel()
    if len(flat) != count:
        raise _bad(name, f"shape {list(shape)} needs {count} elements, got {len(flat)}")
    if not typed:
        raws.append(encode_bytes(flat) if isinstance(flat, list) else flat.tobytes())
        return
    if not kind.field:
        raise _bad(name, f"{datatype} has no typed form")
    if count:
        getattr(header.contents, kind.field).extend(
            flat if isinstance(flat, list) else flat.tolist()
        )


def _decode_all(headers: Sequence[_Header], raws: Sequence[bytes]) -> Steps[dict[str, Tensor]]:
    for header in headers:
        _check_header(header, raw=bool(raws))
    if raws and len(raws) != len(headers):
        raise _raw_count_error(headers, len(raws))
    tensors: dict[str, Tensor] = {}
    for at, header in enumerate(headers):
        name, datatype = header.name, header.datatype
        if name in tensors:
            raise _bad(name, "given more than once")
        shape = tuple(header.shape)
        values = yield from (
            decode_raw(name, datatype, shape, raws[at])
            if raws
            else _decode_typed(name, datatype, shape, header.contents)
        )
        tensors[name] = Tensor(name, datatype, values)
    return tensors


def _check_header(header: _Header, *, raw: bool) -> None:
    if "shared_memory_region" in header.parameters:
        raise Unsupported(
            f"tensor {header.name!r}: shared memory is not offered", param=header.name
        )
    if raw and _has_contents(header):
        raise _bad(header.name, "typed contents beside raw contents; use one form for all tensors")


def _raw_count_error(headers: Sequence[_Header], raws: int) -> InvalidRequest:
    if raws > len(headers):
        return InvalidRequest(
            f"{raws} raw entries for {len(headers)} tensors: {raws - len(headers)} too many",
            param="raw_input_contents",
        )
    missing = headers[raws].name
    return _bad(missing, f"no data: {len(headers)} tensors, but only {raws} raw entries")


def _decode_typed(
    name: str, datatype: str, shape: tuple[int, ...], contents: InferTensorContents
) -> Steps[Array]:
    kind = _datatype(name, datatype)
    count = _element_count(name, shape)
    filled = [field.name for field, _ in contents.ListFields()]
    if not kind.field and (filled or count):
        raise _bad(name, f"{datatype} has no typed form; send it raw")
    wrong = [field for field in filled if field != kind.field]
    if wrong:
        raise _bad(name, f"{datatype} belongs in {kind.field}, not in {wrong[0]}")
    if count and not filled:
        raise _bad(name, "no data: neither raw nor typed contents")
    elements = getattr(contents, kind.field) if kind.field else []
    if len(elements) != count:
        raise _count_error(name, shape, count, len(elements))
    if datatype == "BYTES":
        return _object_array(name, shape, count, list(elements))
    if datatype == "BF16":
        return np.zeros(shape, np.float32)
    parts = [_stored(name, datatype, elements[:_PART])]
    for at in range(_PART, count, _PART):
        yield
        parts.append(_stored(name, datatype, elements[at : at + _PART]))
    return np.concatenate(parts).reshape(shape)


def _datatype(name: str, datatype: str) -> _Datatype:
    kind = _DATATYPES.get(datatype)
    if kind is None:
        raise _bad(name, f"{datatype!r} is no datatype")
    return kind


def _element_count(name: str, shape: Sequence[int]) -> int:
    for size in shape:
        if size < 0:
            raise _bad(name, f"shape {list(shape)} has a negative dimension")
    # numpy cannot hold these even when a 0 among the sizes leaves nothing to store.
    if len(shape) > _MAX_RANK or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise _bad(name, "its shape is too large")
    return math.prod(shape)


def _object_array(name: str, shape: Sequence[int], count: int, elements: list[bytes]) -> Array:
    if len(elements) != count:
        raise _count_error(name, shape, count, len(elements))
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _bytes_elements(name: str, values: Any) -> list[bytes]:
    flat = values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)
    elements = [it.encode() if isinstance(it, str) else it for it in flat]
    for element in elements:
        if not isinstance(element, bytes):
            raise _bad(name, f"expected bytes, got {type(element).__name__}")
    return elements


def _stored(name: str, datatype: str, values: Any) -> Array:
    kind = _datatype(name, datatype)
    stored = "<f4" if datatype == "BF16" else kind.stored
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(values, dtype=stored)
    except (OverflowError, ValueError, TypeError):
        raise _bad(name, f"a value does not fit {datatype}") from None
    # An array is cast silently where a list of ints would raise.
    is_whole = array.dtype.kind not in "fb"
    if is_whole and isinstance(values, np.ndarray) and not np.array_equal(values, array):
        raise _bad(name, f"a value does not fit {datatype}")
    return _to_bf16(array) if datatype == "BF16" else array


def _from_bf16(stored: Array) -> Array:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values: Array) -> Array:
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
    quiet = (bits >> 16) | 0x40  # a NaN must not round into an infinity
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def _has_contents(header: _Header) -> bool:
    return header.HasField("contents") and bool(header.contents.ListFields())


def _count_error(name: str, shape: Sequence[int], count: int, got: int) -> InvalidRequest:
    return _bad(name, f"shape {list(shape)} needs {count} elements, got {got}")


def _bad(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"tensor {name!r}: {what}", param=name)
