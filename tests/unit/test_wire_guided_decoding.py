"""TensorRT-LLM's guided decoding inputs."""

from typing import Any

import pytest

from tests.unit.wire_requests import ask, refusal, sampling_of


@pytest.mark.parametrize(
    ("kind", "guide", "structure"),
    [
        ("json", None, {"json_object": True}),
        ("json", "ignored", {"json_object": True}),
        ("json_schema", '{"type": "object"}', {"json": '{"type": "object"}'}),
        ("regex", "[ab]+", {"regex": "[ab]+"}),
        ("ebnf_grammar", 'root ::= "a"', {"grammar": 'root ::= "a"'}),
        ("structural_tag", "{}", {"structural_tag": "{}"}),
    ],
)
def test_a_guide_of_tensorrt_llm_is_a_structured_output(
    kind: str, guide: str | None, structure: Any
) -> None:
    inputs = {"guided_decoding_guide_type": kind}
    if guide is not None:
        inputs["guided_decoding_guide"] = guide
    assert sampling_of(ask(**inputs, batched=True)).structured_outputs == structure


@pytest.mark.parametrize(
    ("inputs", "param"),
    [
        ({"guided_decoding_guide": "x"}, "guided_decoding_guide_type"),
        ({"guided_decoding_guide_type": "regex"}, "guided_decoding_guide"),
        ({"guided_decoding_guide_type": "yaml"}, "guided_decoding_guide_type"),
        (
            {"guided_decoding_guide_type": "json", "structured_outputs": '{"regex": "a"}'},
            "guided_decoding_guide_type",
        ),
    ],
)
def test_a_wrong_guide_is_refused_by_name(inputs: dict[str, str], param: str) -> None:
    assert refusal(ask(**inputs)).param == param
