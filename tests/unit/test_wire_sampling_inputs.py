"""Sampling parameters of a text request: tensors, JSON and request parameters, and their order."""

import json
from typing import Any

import pytest

from tests.unit.wire_requests import ask, refusal, request_of, sampling_json, sampling_of
from wire.inference_pb2 import ModelInferRequest
from wire.sampling import Sampling, make_sampling
from wire.sampling_inputs import ALIASES, FIELD_KINDS

SAMPLES: dict[str, Any] = {
    "n": 3,
    "max_tokens": 5,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.25,
    "seed": 9,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "stop": ["a", "b"],
    "include_stop_str_in_output": True,
    "stop_token_ids": [3, 4],
    "ignore_eos": True,
    "bad_words": ["x"],
    "logit_bias": {"5": 1.5},
    "allowed_token_ids": [5, 6],
    "logprobs": 2,
    "prompt_logprobs": 1,
    "logprob_token_ids": [8],
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "structured_outputs": {"regex": "a+"},
    "repetition_detection": {"max_pattern_size": 3, "min_count": 2},
}
NAMES = {name: name for name in SAMPLES} | ALIASES


def as_input(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def as_parameter(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def test_the_samples_here_know_every_field() -> None:
    assert SAMPLES.keys() == set(Sampling.__struct_fields__)
    assert FIELD_KINDS.keys() == set(Sampling.__struct_fields__) | {"lora_name"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batched", [False, True])
def test_every_field_and_alias_may_be_a_tensor_of_its_own(name: str, batched: bool) -> None:
    field = NAMES[name]
    got = sampling_of(ask(**{name: as_input(SAMPLES[field])}, batched=batched))
    assert_only(field, got)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_and_alias_may_stand_in_the_json(name: str) -> None:
    field = NAMES[name]
    got = sampling_of(ask(sampling_parameters=sampling_json(**{name: SAMPLES[field]})))
    assert_only(field, got)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_and_alias_may_be_a_request_parameter(name: str) -> None:
    field = NAMES[name]
    value = "a" if field == "stop" else "x" if field == "bad_words" else SAMPLES[field]
    got = sampling_of(ask({name: as_parameter(value)}))
    if field == "stop":
        assert got.stop_strings == ("a",)
    else:
        assert_only(field, got)


def assert_only(field: str, got: Sampling) -> None:
    assert got == make_sampling({"max_tokens": 16, field: SAMPLES[field]})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_tokens", "100", 100),
        ("temperature", "0", 0.0),
        ("top_k", "5", 5),
        ("ignore_eos", "true", True),
        ("seed", "7", 7),
        ("structured_outputs", '{"json": {}}', {"json": {}}),
        ("stop_token_ids", "[1, 2]", (1, 2)),
    ],
)
def test_strings_are_coerced_wherever_they_stand(name: str, text: str, value: Any) -> None:
    in_json = ask(sampling_parameters=sampling_json(**{name: text}))
    for message in (in_json, ask({name: text})):
        assert getattr(sampling_of(message), name) == value


def test_a_string_tensor_is_coerced_too() -> None:
    assert sampling_of(ask(max_tokens="100", temperature="0")).max_tokens == 100


def test_a_tensor_beats_the_json_which_beats_a_parameter() -> None:
    message = ask(
        {"temperature": 0.25, "top_p": 0.25, "top_k": 1, "lora_name": "parameter"},
        sampling_parameters=sampling_json(temperature=0.5, top_p=0.5, lora_name="json"),
        temperature=0.75,
    )
    request = request_of(message)
    assert request.sampling == Sampling(max_tokens=16, temperature=0.75, top_p=0.5, top_k=1)
    assert request.lora_name == "json"


def test_a_fields_own_name_beats_its_alias() -> None:
    for inputs in ({"min_tokens": 2, "min_length": 3}, {"min_length": 3, "min_tokens": 2}):
        assert sampling_of(ask(**inputs)).min_tokens == 2


def test_max_tokens_is_16_unless_lifted_with_null() -> None:
    assert sampling_of(ask()).max_tokens == 16
    assert sampling_of(ask(sampling_parameters='{"max_tokens": null}')).max_tokens is None


def test_empty_stop_words_of_tensorrt_llm_clients_are_none() -> None:
    assert sampling_of(ask(stop_words=[""], bad_words=[""])) == Sampling(max_tokens=16)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (ask(sampling_parameters=sampling_json(tempurature=1)), "tempurature"),
        (ask(sampling_parameters=sampling_json(stream=True)), "stream"),
        (ask(sampling_parameters=sampling_json(temperature=9)), "temperature"),
        (ask(sampling_parameters=sampling_json(lora_name=5)), "lora_name"),
        (ask(sampling_parameters="[]"), "sampling_parameters"),
        (ask(sampling_parameters="nope"), "sampling_parameters"),
        (ask(sampling_parameters='{"temperature": NaN}'), "sampling_parameters"),
        (ask(sampling_parameters="[" * 100_000), "sampling_parameters"),
        (ask(sampling_parameters=b"\xff"), "sampling_parameters"),
        (ask(sampling_parameters=["{}", "{}"]), "sampling_parameters"),
        (ask(sampling_parameters=5), "sampling_parameters"),
        (ask(temperature=True), "temperature"),
        (ask(temperature=[0.5, 0.5]), "temperature"),
        (ask(max_tokens=0.5), "max_tokens"),
        (ask(stop_words=5), "stop_words"),
        (ask(stop_token_ids="5"), "stop_token_ids"),
        (ask(logit_bias="nope"), "logit_bias"),
        (ask(ignore_eos=0.5), "ignore_eos"),
        (ask({"temperature": "hot"}), "temperature"),
        (ask({"max_tokens": True}), "max_tokens"),
        (ask({"logit_bias": "nope"}), "logit_bias"),
        (ask({"stop": 5}), "stop"),
        (ask(temperature=9.0), "temperature"),
        (ask(n=2, temperature=0.0), "n"),
    ],
)
def test_wrong_sampling_is_refused_by_name(message: ModelInferRequest, param: str) -> None:
    error = refusal(message)
    assert error.param == param
    assert param in error.message
