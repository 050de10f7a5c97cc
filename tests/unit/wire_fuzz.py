"""Requests that are nearly right: what hypothesis makes of a ModelInferRequest's parts."""

from typing import Any

from hypothesis import strategies as st

from wire.inference_pb2 import InferParameter, InferTensorContents, ModelInferRequest
from wire.parameters import EXPLAIN, PINNED_WORKER, RANK
from wire.tensors import DATATYPES, encode_bytes
from wire.text_inputs import OUTPUTS, TEXT_INPUTS

_INT64 = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(max_size=8) | st.sampled_from(["0", "1", "16", "true", "None", "nan", "{}", "[[]]"])
_SMALL = st.integers(-2, 40)
RESERVED = (
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "lora_name",
    "cache_salt", "binary_data_output", "triton_enable_empty_final_response", "triton_x",
    "penstock_slot", "penstock_cancel", "traceparent", PINNED_WORKER, RANK, EXPLAIN,
)  # fmt: skip
_JSON = st.sampled_from(
    [
        '{"max_tokens": 3}', '{"max_tokens": "3"}', '{"n": 2}', '{"temperature": NaN}', "{", "[]",
        '{"messages": [{"role": "user", "content": "a"}]}', '[{"role": "user", "content": "a"}]',
        '[{"role": "user"}]', '[{"content": [1]}]', '{"messages": 3}', "null", '"a"', "1e999",
        '{"structured_outputs": {"regex": "("}}', '{"logit_bias": {"5": 1}}', '{"stop": ["", 3]}',
        '{"stop": "a", "min_tokens": 2}', '{"seed": 1e30}', '{"prompt_logprobs": 1, "logprobs": 1}',
    ]
)  # fmt: skip


def _parameter(field: str, value: Any) -> InferParameter:
    return InferParameter(**{field: value})


PARAMETER = st.one_of(
    st.just(InferParameter()),
    st.builds(_parameter, st.just("bool_param"), st.booleans()),
    st.builds(_parameter, st.just("int64_param"), _INT64 | _SMALL),
    st.builds(_parameter, st.just("uint64_param"), st.integers(0, 2**64 - 1)),
    st.builds(_parameter, st.just("double_param"), st.floats()),
    st.builds(_parameter, st.just("string_param"), _TEXT),
)
_CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "int64_contents": st.lists(_INT64, max_size=3),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=3),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "fp32_contents": st.lists(st.floats(width=32), max_size=3),
        "fp64_contents": st.lists(st.floats(), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=6), max_size=3),
    },
)
_SHAPE = st.sampled_from([[1], [1], [1, 1], [], [2], [0], [-1], [3], [1, 2], [2**40]]) | st.lists(
    st.integers(-1, 3), max_size=4
)
_RAW = st.one_of(
    st.binary(max_size=16),
    st.builds(lambda text: encode_bytes([text.encode()]), _TEXT | _JSON),
    st.builds(lambda value: value.to_bytes(4, "little", signed=True), _SMALL),
    st.booleans().map(lambda value: bytes([value])),
)
_NAME = st.sampled_from([*sorted(TEXT_INPUTS), "image", "x", ""])
_INPUT = st.tuples(
    _NAME,
    st.sampled_from([*sorted(DATATYPES), "BYTES", "BYTES", "INT32", "", "STRING"]),
    _SHAPE,
    _RAW,
    _CONTENTS,
)


_RIGHT = st.sampled_from(
    [
        ("max_tokens", "INT32", [1], b"\3\0\0\0"),
        ("max_tokens", "BYTES", [], encode_bytes([b"5"])),
        ("temperature", "FP32", [1, 1], b"\0\0\0\x3f"),
        ("n", "INT64", [1], b"\2\0\0\0\0\0\0\0"),
        ("stop", "BYTES", [2], encode_bytes([b"a", b""])),
        ("sampling_parameters", "BYTES", [1], encode_bytes([b'{"min_tokens": "1"}'])),
        ("return_log_probs", "BOOL", [1], b"\1"),
        ("return_finish_reason", "BOOL", [1], b"\1"),
        ("return_output_ids", "UINT8", [1], b"\1"),
        ("stream", "BOOL", [1], b"\1"),
        ("exclude_input_in_output", "BOOL", [1], b"\1"),
    ]
)


@st.composite
def right_requests(draw: st.DrawFn) -> ModelInferRequest:
    """A request whose every part is right by itself."""
    message = ModelInferRequest(model_name="sim", id=draw(st.text(max_size=2)))
    prompts = [
        ("text_input", "BYTES", [1], encode_bytes([b"Hello there"])),
        ("input_ids", "INT32", [1, 2], b"\5\0\0\0\6\0\0\0"),
        ("messages", "BYTES", [1], encode_bytes([b'[{"role": "user", "content": "a"}]'])),
    ]
    more = draw(st.lists(_RIGHT, max_size=3, unique_by=lambda it: it[0]))
    for name, datatype, shape, raw in (draw(st.sampled_from(prompts)), *more):
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    for name in draw(st.lists(st.sampled_from(sorted(OUTPUTS)), max_size=2)):
        message.outputs.add(name=name)
    return message


@st.composite
def wrong_requests(draw: st.DrawFn) -> ModelInferRequest:
    """A request that is mostly wrong; half begin with a right prompt, to meet later checks too."""
    message = ModelInferRequest(
        model_name=draw(st.sampled_from(["sim", "sim", "sim", "", "nobody"])),
        model_version=draw(st.sampled_from(["", "", "", "1", "2", "x"])),
        id=draw(st.text(max_size=4)),
    )
    typed = draw(st.sampled_from([False, False, False, True, None]))
    if draw(st.booleans()):
        prompt = message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        if typed:
            prompt.contents.bytes_contents.append(b"Hello there")
        else:
            message.raw_input_contents.append(encode_bytes([b"Hello there"]))
    for name, datatype, shape, raw, contents in draw(st.lists(_INPUT, max_size=3)):
        header = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if typed in (True, None):
            header.contents.CopyFrom(InferTensorContents(**contents))
        if not typed:
            message.raw_input_contents.append(raw)
    names = st.sampled_from([*RESERVED, *sorted(TEXT_INPUTS)]) | st.text(max_size=4)
    for name, value in draw(st.dictionaries(names, PARAMETER, max_size=3)).items():
        message.parameters[name].CopyFrom(value)
    outputs = st.lists(st.sampled_from([*sorted(OUTPUTS), "y"]), max_size=2)
    for name in draw(st.just([]) | outputs):
        output = message.outputs.add(name=name)
        if draw(st.integers(0, 9)) == 0:
            output.parameters["classification"].CopyFrom(draw(PARAMETER))
    return message


def requests() -> st.SearchStrategy[ModelInferRequest]:
    """Both kinds."""
    return wrong_requests() | right_requests()
