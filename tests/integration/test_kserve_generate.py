"""Triton's generate extension over HTTP, over a backend that follows a script."""

import json

import pytest

from runtime.errors import EngineFailed, ModelNotReady, Overloaded, ServingError
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import serving

GENERATE = "/v2/models/toy/generate"
STREAM = "/v2/models/toy/generate_stream"


def events(text: str) -> list[dict]:
    assert text.endswith("\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]


async def test_generate_takes_texts_and_values_by_name() -> None:
    body = {
        "id": "g1",
        "text_input": "Hi",
        "max_tokens": 5,
        "stop_words": ["a", "b"],
        "unknown": "ignored",
        "top_k": None,
        "return_output_ids": True,
        "parameters": {
            "temperature": 0,
            "seed": 2**63 - 1,
            "stop_token_ids": [1, 2],
            "priority": 3,
        },
    }
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = (await http.post(GENERATE, json=body)).json()
    assert answer["text_output"] == "Paris é\n"
    assert answer["output_ids"] == [1, 2, 3]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("g1", "toy", "1")
    (request,) = backend.requests
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (5, 0, 2**63 - 1)
    assert list(sampling.stop) == ["a", "b"]
    assert list(sampling.stop_token_ids) == [1, 2]
    assert request.priority == 3
    assert request.echo


async def test_generate_takes_messages_and_ids_as_json() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    backend = ScriptedBackend()
    async with serving(backend) as http:
        await http.post(GENERATE, json={"messages": messages})
        await http.post(GENERATE, json={"input_ids": [4, 5], "logit_bias": {"7": 1.5}})
    chat, ids = backend.requests
    assert chat.messages == messages
    assert list(ids.prompt_token_ids or ()) == [4, 5]
    assert ids.sampling.logit_bias == {7: 1.5}


async def test_several_choices_are_a_list() -> None:
    async with serving(ScriptedBackend()) as http:
        answer = (await http.post(GENERATE, json={"text_input": "Hi", "n": 2})).json()
    assert answer["text_output"] == ["Paris é\n", "Paris é\n"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text_input": 3},
        {"text_input": "Hi", "max_tokens": "many"},
        {"text_input": "Hi", "stop_words": ["a", 1]},
        {"text_input": "Hi", "parameters": [1]},
        {"text_input": "Hi", "id": 7},
        {"text_input": "Hi", "parameters": {"triton_x": 1}},
        {"text_input": "Hi", "parameters": {"other": {}}},
        {"text_input": "Hi", "priority": 2**64},
    ],
)
async def test_a_wrong_value_is_refused_with_a_text(body: dict) -> None:
    async with serving(ScriptedBackend()) as http:
        answer = await http.post(GENERATE, json=body)
        again = await http.post(GENERATE, json={"text_input": "Hi"})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert again.status_code == 200


async def test_generate_stream_sends_an_event_for_each_delta_and_no_mark_at_the_end() -> None:
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = await http.post(STREAM, json={"text_input": "Hi", "id": "s"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = events(answer.text)
    assert "".join(part["text_output"] for part in parts) == "Paris é\n"
    assert [part["triton_final_response"] for part in parts] == [False, False, False, True]
    assert {part["id"] for part in parts} == {"s"}
    assert parts[-1]["completion_tokens"] == 3
    assert backend.requests[0].stream


@pytest.mark.parametrize(
    ("error", "status"),
    [(Overloaded("full"), 429), (ModelNotReady("no worker"), 503), (EngineFailed("broken"), 500)],
)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_an_error_has_its_status_and_kserves_form(
    path: str, error: ServingError, status: int
) -> None:
    async with serving(ScriptedBackend(error)) as http:
        answer = await http.post(path, json={"text_input": "Hi"})
    assert (answer.status_code, answer.json()) == (status, {"error": error.message})
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_an_error_after_the_first_delta_is_the_last_event() -> None:
    async with serving(ScriptedBackend("a", EngineFailed("broken"))) as http:
        answer = await http.post(STREAM, json={"text_input": "Hi"})
    assert answer.status_code == 200
    assert events(answer.text)[1:] == [{"error": "broken"}]
