"""Responses from templates are, byte for byte, what the protobuf class would have written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, Usage
from wire.sampling import Sampling
from wire.text_inputs import OUTPUTS, OutputSelection
from wire.text_response import stream_response
from wire.text_template import PlainResponses


def request(name: str = "r", model: str = "m", n: int = 1) -> GenerateRequest:
    return GenerateRequest(request_id=name, model=model, sampling=Sampling(n=n), prompt="x")


@given(
    st.text(max_size=2000),
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.booleans(),
)
def test_a_token_is_written_as_the_class_writes_it(
    text: str, name: str, model: str, batched: bool
) -> None:
    text = text.encode("utf-8", "replace").decode()
    asked = request(name, model)
    selection = OutputSelection(batched=batched)
    delta = GenerateDelta(choices=[ChoiceDelta(text=text, token_ids=[1])], prompt_tokens=3)
    written = PlainResponses(asked, selection).encode(delta)
    expected = stream_response(asked, selection, delta).SerializeToString(deterministic=True)
    assert written is None or written == expected
    if len(text) < 300 and len(name) < 50:
        assert written == expected


def test_where_more_than_text_is_new_the_class_writes_it() -> None:
    responses = PlainResponses(request(), OutputSelection())
    plain = ChoiceDelta(text="a")
    assert responses.encode(GenerateDelta(choices=[plain])) is not None
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    for delta in (
        GenerateDelta(choices=[plain], usage=usage),
        GenerateDelta(choices=[]),
        GenerateDelta(choices=[plain, ChoiceDelta(index=1)]),
        GenerateDelta(choices=[ChoiceDelta(text="a", stop_reason="b")]),
        GenerateDelta(choices=[ChoiceDelta(text="a" * 5000)]),
    ):
        assert responses.encode(delta) is None


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name != "text_output"])
def test_other_outputs_are_not_for_it(output: str) -> None:
    assert not PlainResponses(request(), OutputSelection(outputs=("text_output", output))).fits


def test_neither_are_typed_contents_and_several_choices() -> None:
    assert not PlainResponses(request(), OutputSelection(typed=True)).fits
    assert not PlainResponses(request(n=2), OutputSelection()).fits
