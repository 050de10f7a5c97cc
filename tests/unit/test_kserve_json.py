"""KServe's JSON becomes the request that gRPC would carry, or is refused as the client's."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_http.kserve_answers import GenerateEvents, InferAnswer, WholeDelta
from gateway_http.kserve_json import InferBody, generate_message, infer_message
from gateway_http.openai import decode_json
from runtime.errors import InvalidRequest, Unsupported
from runtime.rpc import CallInfo
from runtime.turns import at_once
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, Usage
from wire.sampling import Sampling
from wire.tensors import DATATYPES, FLOATS, INTEGERS, decode_inputs
from wire.text_inputs import TEXT_INPUTS, OutputSelection
from wire.text_request import decode_text_request

INFO = CallInfo(method="test")
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": ["a", "é\n"],
    **{name: [0, 127] for name in INTEGERS},
    **{name: [1, -0.5] for name in FLOATS},
}
REQUEST = GenerateRequest(request_id="r", model="m", sampling=Sampling())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def body(*inputs: object, **fields: object) -> InferBody:
    return decode_json(msgspec.json.encode({"inputs": inputs, **fields}), InferBody)


def test_the_samples_here_know_every_datatype() -> None:
    assert VALUES.keys() == DATATYPES


@pytest.mark.parametrize("datatype", sorted(VALUES))
@pytest.mark.parametrize("nested", [False, True])
def test_data_of_every_datatype_is_read(datatype: str, nested: bool) -> None:
    values = VALUES[datatype]
    data = [[value] for value in values] if nested else values
    tensor = {"name": "x", "datatype": datatype, "shape": [2, 1], "data": data}
    (read,) = decode_inputs(infer_message(body(tensor), b"", "m", "")).values()
    elements = [it.decode() if isinstance(it, bytes) else it for it in read.values.ravel()]
    assert read.shape == (2, 1)
    assert elements == values


def test_inputs_behind_the_json_are_taken_in_their_order() -> None:
    sized = {"datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}}
    plain = {"name": "b", "datatype": "INT32", "shape": [1], "data": [2]}
    asked = body({"name": "a", **sized}, plain, {"name": "c", **sized})
    message = infer_message(asked, b"\1\0\0\0\3\0\0\0", "m", "")
    read = {name: it.values.tolist() for name, it in decode_inputs(message).items()}
    assert read == {"a": [1], "b": [2], "c": [3]}


@pytest.mark.parametrize("size", [-1, True, "4", 1.0, 5, None])
def test_a_size_that_is_none_or_too_large_is_refused(size: object) -> None:
    tensor = {
        "name": "a",
        "datatype": "INT32",
        "shape": [1],
        "parameters": {"binary_data_size": size},
    }
    with pytest.raises(InvalidRequest, match="a"):
        infer_message(body(tensor), b"1234", "m", "")


def test_null_is_not_given_and_a_float_may_be_written_as_a_whole_number() -> None:
    named = {"text_input": "x", "top_k": None, "temperature": 0, "top_p": 1}
    message = generate_message(named, "m", "", stream=False)
    request, _ = at_once(decode_text_request(message, INFO, streaming_rpc=True))
    assert request.sampling.temperature == 0
    assert request.sampling.top_k == Sampling().top_k


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([*sorted(TEXT_INPUTS), "id", "parameters", "x"]), JSON))
def test_no_json_breaks_generate(given: dict[str, object]) -> None:
    with suppress(InvalidRequest, Unsupported):
        message = generate_message(given, "m", "", stream=True)
        at_once(decode_text_request(message, INFO, streaming_rpc=True))


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(TEXT_INPUTS)),
    st.sampled_from([*sorted(DATATYPES), "TEXT"]),
    st.lists(st.integers(-1, 3), max_size=3),
    JSON,
    JSON,
    st.binary(max_size=8),
)
def test_no_json_breaks_infer(
    name: str, datatype: str, shape: list[int], data: object, parameters: object, behind: bytes
) -> None:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    sizes = {"binary_data_size": parameters}
    with suppress(InvalidRequest, Unsupported):
        asked = body(tensor, {**tensor, "parameters": sizes}, parameters=parameters)
        message = infer_message(asked, behind, "m", "")
        at_once(decode_text_request(message, INFO, streaming_rpc=True))


def test_the_deltas_of_a_whole_answer_are_joined_choice_by_choice() -> None:
    whole = WholeDelta()
    first = [ChoiceDelta(index=1, text="b", token_ids=[2]), ChoiceDelta(text="a", token_ids=[1])]
    whole.add(GenerateDelta(choices=first, prompt_tokens=3))
    assert not whole.complete
    last = [
        ChoiceDelta(text="c", token_ids=[3], finish_reason="stop", stop_reason="x"),
        ChoiceDelta(index=1, finish_reason="length", cumulative_logprob=-1.0),
    ]
    usage = Usage(prompt_tokens=3, completion_tokens=3)
    whole.add(GenerateDelta(choices=last, usage=usage))
    assert whole.complete
    delta = whole.delta()
    assert [(it.index, it.text, it.token_ids) for it in delta.choices] == [
        (0, "ac", [1, 3]),
        (1, "b", [2]),
    ]
    assert [it.finish_reason for it in delta.choices] == ["stop", "length"]
    assert delta.choices[0].stop_reason == "x"
    assert delta.choices[1].cumulative_logprob == -1
    assert (delta.prompt_tokens, delta.usage) == (3, usage)


def test_what_json_cannot_carry_is_null() -> None:
    selection = OutputSelection(outputs=("cumulative_logprob",))
    delta = GenerateDelta(choices=[ChoiceDelta(text="a")])
    event = GenerateEvents(REQUEST, selection).write(0, delta)
    assert msgspec.json.decode(event[6:])["cumulative_logprob"] is None


def test_only_what_is_asked_for_stands_behind_the_json() -> None:
    selection = OutputSelection(outputs=("text_output", "num_input_tokens"))
    answer = InferAnswer(REQUEST, selection, lambda name: name == "num_input_tokens")
    usage = Usage(prompt_tokens=3, completion_tokens=1)
    answer.add(0, GenerateDelta(choices=[ChoiceDelta(text="a")], prompt_tokens=3, usage=usage))
    content = answer.encode()
    length = int(dict(answer.headers)[b"inference-header-content-length"])
    text, count = msgspec.json.decode(content[:length])["outputs"]
    assert text["data"] == ["a"]
    assert count["parameters"] == {"binary_data_size": 4}
    assert content[length:] == b"\3\0\0\0"
