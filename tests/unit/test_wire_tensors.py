"""Tensor codecs: every datatype, both forms, both directions, and whatever may be wrong."""

import contextlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import InferInput, InferResult, service_pb2
from tritonclient.grpc._utils import _get_inference_request

from runtime.errors import InternalError, InvalidRequest, Unsupported
from wire.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from wire.tensors import (
    DATATYPES,
    add_input,
    add_output,
    decode_inputs,
    decode_inputs_by_parts,
    decode_outputs,
    encode_raw,
    is_typed,
)

bounded = settings(deadline=None, max_examples=40)

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
TYPED = sorted(DATATYPES - {"FP16", "BF16"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def bf16_of(bits: np.ndarray) -> np.ndarray:
    """Float32 values that BF16 holds exactly, every NaN the quiet one."""
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    return np.where(np.isnan(values), np.float32("nan"), values)


def arrays(datatype: str) -> st.SearchStrategy[np.ndarray]:
    """Values of every shape up to rank 3, scalars and empty ones too."""
    if datatype == "BF16":
        return hnp.arrays(np.uint16, SHAPES).map(bf16_of)
    if datatype == "BYTES":
        return hnp.arrays(object, SHAPES, elements=st.binary(max_size=9), fill=st.nothing())
    return hnp.arrays(NUMPY[datatype], SHAPES)


TENSORS = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda datatype: st.tuples(st.just(datatype), arrays(datatype))
)
TYPED_TENSORS = st.sampled_from(TYPED).flatmap(
    lambda datatype: st.tuples(st.just(datatype), arrays(datatype))
)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal shape and equal values, a NaN being equal to a NaN."""
    if left.shape != right.shape:
        return False
    if left.dtype == object:
        return left.tolist() == right.tolist()
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


@bounded
@given(st.lists(TENSORS, max_size=4))
def test_raw_inputs_come_back_as_they_were(tensors: list[tuple[str, np.ndarray]]) -> None:
    message = ModelInferRequest()
    for number, (datatype, values) in enumerate(tensors):
        add_input(message, f"t{number}", datatype, values.shape, values)
    decoded = decode_inputs(ModelInferRequest.FromString(message.SerializeToString()))
    assert list(decoded) == [f"t{number}" for number in range(len(tensors))]
    for tensor, (datatype, values) in zip(decoded.values(), tensors, strict=True):
        assert tensor.datatype == datatype
        assert same(tensor.values, values)


@bounded
@given(st.lists(TYPED_TENSORS, max_size=4))
def test_typed_inputs_come_back_as_they_were(tensors: list[tuple[str, np.ndarray]]) -> None:
    message = ModelInferRequest()
    for number, (datatype, values) in enumerate(tensors):
        add_input(message, f"t{number}", datatype, values.shape, values, typed=True)
    assert not message.raw_input_contents
    assert is_typed(message) == any(values.size for _, values in tensors)
    decoded = decode_inputs(message)
    assert all(
        same(it.values, values) for it, (_, values) in zip(decoded.values(), tensors, strict=True)
    )


@bounded
@given(TENSORS, TYPED_TENSORS)
def test_outputs_come_back_as_they_were(
    raw: tuple[str, np.ndarray], typed: tuple[str, np.ndarray]
) -> None:
    for (datatype, values), form in ((raw, False), (typed, True)):
        message = ModelInferResponse()
        add_output(message, "out", datatype, values.shape, values, typed=form)
        assert same(decode_outputs(message)["out"].values, values)


@bounded
@given(TENSORS)
def test_tritonclient_reads_every_raw_output_as_we_wrote_it(
    tensor: tuple[str, np.ndarray],
) -> None:
    datatype, values = tensor
    message = ModelInferResponse()
    add_output(message, "out", datatype, values.shape, values)
    theirs = service_pb2.ModelInferResponse.FromString(message.SerializeToString())
    if values.size == 0:
        assert theirs.raw_output_contents[0] == b""
        return
    read = InferResult(theirs).as_numpy("out")
    assert same(read.astype(np.float32) if datatype == "BF16" else read, values)


@bounded
@given(TENSORS.filter(lambda tensor: tensor[1].size > 0))
def test_we_read_every_input_of_tritonclient_as_it_wrote_it(
    tensor: tuple[str, np.ndarray],
) -> None:
    datatype, values = tensor
    given_input = InferInput("in", list(values.shape), datatype)
    given_input.set_data_from_numpy(
        values.astype(ml_dtypes.bfloat16) if datatype == "BF16" else values
    )
    theirs = _get_inference_request(
        "m", [given_input], "", "", None, 0, False, False, 0, None, None
    )
    ours = ModelInferRequest.FromString(theirs.SerializeToString())
    assert same(decode_inputs(ours)["in"].values, values)


@bounded
@given(hnp.arrays(np.float32, 8, elements=st.floats(width=32)))
def test_bf16_rounds_as_ml_dtypes_does(values: np.ndarray) -> None:
    ours = np.frombuffer(encode_raw("x", "BF16", values), "<u2")
    with np.errstate(all="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    number = ~np.isnan(values)
    assert np.array_equal(ours[number], theirs[number])
    assert np.isnan(bf16_of(ours[~number])).all()


def test_raw_is_little_endian_and_row_major() -> None:
    assert encode_raw("x", "INT16", np.array([[1, 2], [3, -1]], ">i2")) == (
        b"\x01\0\x02\0\x03\0\xff\xff"
    )
    assert encode_raw("x", "BYTES", ["é", b""]) == b"\x02\0\0\0\xc3\xa9\0\0\0\0"


def test_a_scalar_shape_holds_one_element() -> None:
    typed = request(("x", "INT32", [], InferTensorContents(int_contents=[7])))
    assert decode_inputs(typed)["x"].values.tolist() == 7
    raw = request(("x", "BYTES", [], None), raw=[b"\x01\0\0\0a"])
    assert decode_inputs(raw)["x"].values.tolist() == b"a"


def request(
    *tensors: tuple[str, str, list[int], InferTensorContents | None],
    raw: list[bytes] | None = None,
) -> ModelInferRequest:
    message = ModelInferRequest(raw_input_contents=raw or [])
    for name, datatype, shape, contents in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    return message


def contents(**fields: list) -> InferTensorContents:
    return InferTensorContents(**fields)


INT2 = contents(int_contents=[1, 2])
WRONG = {
    "no such datatype": (request(("x", "INT31", [1], None), raw=[b"1"]), "'INT31'"),
    "no datatype": (request(("x", "", [1], None), raw=[b"1"]), "''"),
    "lower case": (request(("x", "int8", [1], None), raw=[b"1"]), "'int8'"),
    "negative dimension": (request(("x", "INT8", [-1], None), raw=[b"1"]), "negative"),
    "two negative": (request(("x", "INT8", [-1, -1], None), raw=[b"1"]), "negative"),
    "short": (request(("x", "INT32", [2], None), raw=[b"1234"]), "8 bytes, got 4"),
    "long": (request(("x", "INT32", [1], None), raw=[b"12345"]), "4 bytes, got 5"),
    "empty but full": (request(("x", "INT32", [0], None), raw=[b"1234"]), "0 bytes"),
    "huge": (request(("x", "INT8", [2**62], None), raw=[b"1"]), "too large"),
    "huge and empty": (request(("x", "INT8", [2**62, 2**62, 0], None), raw=[b""]), "too large"),
    "deep": (request(("x", "INT8", [1] * 65, None), raw=[b"1"]), "too large"),
    "typed deep": (request(("x", "INT8", [1] * 65, contents(int_contents=[1]))), "too large"),
    "length cut": (request(("x", "BYTES", [1], None), raw=[b"\1\0\0"]), "left over"),
    "element cut": (request(("x", "BYTES", [1], None), raw=[b"\5\0\0\0abc"]), "2 bytes longer"),
    "too few": (request(("x", "BYTES", [2], None), raw=[b"\1\0\0\0a"]), "2 elements, got 1"),
    "too many": (request(("x", "BYTES", [1], None), raw=[b"\0\0\0\0" * 2]), "got 2"),
    "typed too few": (request(("x", "INT32", [3], INT2)), "3 elements, got 2"),
    "typed bytes": (request(("x", "BYTES", [2], contents(bytes_contents=[b""]))), "got 1"),
    "wrong field": (request(("x", "INT64", [2], INT2)), "int64_contents, not in int_contents"),
    "two fields": (
        request(("x", "INT32", [1], contents(int_contents=[1], fp32_contents=[1]))),
        "not in fp32_contents",
    ),
    "out of range": (request(("x", "INT8", [1], contents(int_contents=[128]))), "fit INT8"),
    "unsigned range": (request(("x", "UINT8", [1], contents(uint_contents=[256]))), "fit UINT8"),
    "typed half": (request(("x", "FP16", [1], contents(fp32_contents=[1]))), "no typed form"),
    "typed brain": (request(("x", "BF16", [1], contents(fp32_contents=[1]))), "no typed form"),
    "no data": (request(("x", "INT32", [1], None)), "no data"),
    "no half data": (request(("x", "FP16", [1], None)), "no typed form"),
    "raw and typed": (request(("x", "INT32", [2], INT2), raw=[b"12345678"]), "beside raw"),
    "missing raw": (
        request(("a", "INT8", [1], None), ("x", "INT8", [1], None), raw=[b"1"]),
        "only 1 raw",
    ),
    "twice": (
        request(("x", "INT8", [1], None), ("x", "INT8", [1], None), raw=[b"1", b"1"]),
        "more than once",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tensor_is_refused_by_name(case: str) -> None:
    message, text = WRONG[case]
    with pytest.raises(InvalidRequest, match=text) as caught:
        decode_inputs(message)
    assert caught.value.param == "x"
    assert "'x'" in caught.value.message


def test_surplus_raw_entries_are_refused() -> None:
    message = request(("x", "INT8", [1], None), raw=[b"1", b"2", b"3"])
    with pytest.raises(InvalidRequest, match="2 too many"):
        decode_inputs(message)


def test_empty_tensors_need_no_data_in_either_form() -> None:
    for message in (
        request(("x", "INT32", [0], None), ("y", "FP16", [3, 0], None)),
        request(("x", "INT32", [0], None), ("y", "FP16", [3, 0], None), raw=[b"", b""]),
    ):
        decoded = decode_inputs(message)
        assert decoded["x"].shape == (0,)
        assert decoded["y"].shape == (3, 0)


def test_shared_memory_is_refused() -> None:
    message = request(("x", "INT32", [1], None))
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode_inputs(message)


def test_a_malformed_response_is_not_the_clients_fault() -> None:
    message = ModelInferResponse(raw_output_contents=[b"1"])
    message.outputs.add(name="x", datatype="INT32", shape=[1])
    with pytest.raises(InternalError, match="malformed response"):
        decode_outputs(message)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT8", [256]),
        ("UINT8", np.array([256])),
        ("INT32", np.array([1.5])),
        ("INT64", ["a"]),
        ("BYTES", [1]),
        ("INT32", [1, 2]),
    ],
)
def test_values_that_do_not_fit_are_not_sent(datatype: str, values: object) -> None:
    with pytest.raises(InvalidRequest, match="x"):
        add_input(ModelInferRequest(), "x", datatype, [1], values)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_not_sent_typed(datatype: str) -> None:
    with pytest.raises(InvalidRequest, match="no typed form"):
        add_input(ModelInferRequest(), "x", datatype, [1], [1.0], typed=True)


@bounded
@given(st.binary(max_size=40), st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(-2, 5)))
def test_no_bytes_break_the_decoder(raw: bytes, datatype: str, shape: list[int]) -> None:
    message = ModelInferRequest(raw_input_contents=[raw])
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    with contextlib.suppress(InvalidRequest):
        assert list(decode_inputs(message)["x"].shape) == shape


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT32", np.arange(100_000)),
        ("UINT64", np.arange(50_000).astype(np.uint64) + 2**63),
        ("FP32", np.arange(50_000) / 4),
        ("BYTES", [b"x" * (place % 9) for place in range(65_536)]),
    ],
    ids=["INT32", "UINT64", "FP32", "BYTES"],
)
def test_many_elements_are_read_by_parts_and_come_through(datatype, values, typed) -> None:
    message = ModelInferRequest()
    add_input(message, "a", datatype, (2, len(values) // 2), values, typed=typed)
    assert decode_inputs(message)["a"].values.ravel().tolist() == list(values)
    by_parts = typed == (datatype != "BYTES")
    assert (sum(1 for _ in decode_inputs_by_parts(message)) > 2) == by_parts


@pytest.mark.parametrize("typed", [True, False])
def test_more_texts_than_anyone_needs_are_refused(typed: bool) -> None:
    message = ModelInferRequest()
    add_input(message, "a", "BYTES", (65_537,), [b""] * 65_537, typed=typed)
    with pytest.raises(InvalidRequest, match="'a': more than 65536 texts"):
        decode_inputs(message)
