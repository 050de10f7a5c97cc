"""OpenAI's endpoints against openai-python's own types, field by field; and its error classes."""

from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    ServingError,
    Unauthenticated,
    WorkerLost,
)
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import openai_for, serving
from tests.integration.openai_validation import events_of, valid
from wire.generate import ChoiceDelta, ToolCallDelta

CHAT: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "toy", "prompt": ["a", "b"]}
FORMS_OF_ONE: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"return_token_ids": True},
]
FORMS = [*FORMS_OF_ONE, {"n": 2, "temperature": 1}]


def agent() -> ScriptedBackend:
    backend = ScriptedBackend(
        ChoiceDelta(reasoning="Hm"),
        "So",
        ChoiceDelta(tool_calls=[ToolCallDelta(index=0, id="c0", name="f", arguments="{}")]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=1, id="c1", name="g", arguments="{")]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=1, arguments="}")]),
    )
    backend.finish = "tool_calls"
    return backend


@pytest.mark.parametrize(
    ("backend", "fields"),
    [(ScriptedBackend, it) for it in FORMS] + [(agent, it) for it in FORMS_OF_ONE],
)
async def test_whole_and_streamed_chats_are_valid(backend: Any, fields: dict[str, Any]) -> None:
    async with serving(backend()) as http:
        whole = await http.post("/v1/chat/completions", json=CHAT | fields)
        options = {"include_usage": True, "continuous_usage_stats": True}
        for more in ({}, {"stream_options": options}):
            asked = {**CHAT, **fields, **more, "stream": True}
            stream = await http.post("/v1/chat/completions", json=asked)
            chunks = [valid(ChatCompletionChunk, it) for it in events_of(stream.content)]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert (chunks[-1].usage is not None) is bool(more)
    answer = valid(ChatCompletion, whole.json())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert "refusal" in whole.json()["choices"][0]["message"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}, {"echo": True}, {"n": 2}])
async def test_whole_and_streamed_completions_are_valid(fields: dict[str, Any]) -> None:
    async with serving(ScriptedBackend()) as http:
        whole = await http.post("/v1/completions", json=TEXT | fields)
        stream = await http.post("/v1/completions", json={**TEXT, **fields, "stream": True})
    answer = valid(Completion, whole.json())
    assert [it.index for it in answer.choices] == list(range(2 * fields.get("n", 1)))
    for event in events_of(stream.content):
        # The type has no room for a choice that goes on.
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        valid(Completion, event)


async def test_models_are_valid() -> None:
    async with serving(ScriptedBackend()) as http:
        listed = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/toy")).json()
    assert valid(Model, one).id == "toy"
    assert [valid(Model, it).id for it in listed["data"]] == ["toy", "toy-alias"]


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (InvalidRequest("x", param="n"), openai.BadRequestError, 400),
        (ContextLengthExceeded("x", param="messages"), openai.BadRequestError, 400),
        (Unauthenticated("x"), openai.AuthenticationError, 401),
        (ModelNotFound("x", param="model"), openai.NotFoundError, 404),
        (RequestTimeout("x"), openai.APIStatusError, 408),
        (RequestTooLarge("x"), openai.APIStatusError, 413),
        (Overloaded("x"), openai.RateLimitError, 429),
        (Cancelled("x"), openai.APIStatusError, 499),
        (EngineFailed("x"), openai.InternalServerError, 500),
        (WorkerLost("x"), openai.InternalServerError, 503),
        (DeadlineExceeded("x"), openai.InternalServerError, 504),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_error_raises_the_class_that_the_client_has_for_it(
    error: ServingError, kind: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    async with serving(ScriptedBackend(error)) as http, openai_for(http) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**CHAT, stream=stream)
    found = caught.value
    assert found.status_code == status
    assert found.code == error.reason
    assert found.param == error.param
    assert found.type
    assert ("retry-after" in found.response.headers) is (status in (429, 503))
