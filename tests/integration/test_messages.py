"""Anthropic's Messages API over HTTP, as Anthropic's own client sees it where it is installed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime.access import Access
from runtime.errors import EngineFailed, Overloaded, Unauthenticated
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import serving
from tests.integration.openai_validation import events_of, valid
from wire.generate import ChoiceDelta, ToolCallDelta

anthropic = pytest.importorskip("anthropic", reason="vLLM brings it along")

TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
ASK: dict[str, Any] = {
    "model": "toy", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}],
}  # fmt: skip


def agent() -> ScriptedBackend:
    backend = ScriptedBackend(
        ChoiceDelta(reasoning="Hm"),
        "So ",
        "be it",
        ChoiceDelta(tool_calls=[ToolCallDelta(index=0, id="c0", name="f", arguments='{"a"')]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=0, arguments=": 1}")]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=1, id="c1", name="g")]),
    )
    backend.finish = "tool_calls"
    return backend


@asynccontextmanager
async def asking(backend: ScriptedBackend, key: str = "none", **options: Any) -> AsyncIterator[Any]:
    async with (
        serving(backend, **options) as http,
        anthropic.AsyncAnthropic(
            base_url=str(http.base_url).rstrip("/"), api_key=key, max_retries=0, timeout=5
        ) as client,
    ):
        yield client


CONTENT = [("thinking", "Hm"), ("text", "So be it"), ("tool_use", {"a": 1}), ("tool_use", {})]


def content_of(message: Any) -> list[tuple[str, Any]]:
    names = {"thinking": "thinking", "text": "text", "tool_use": "input"}
    return [(block.type, getattr(block, names[block.type])) for block in message.content]


async def test_a_whole_answer_has_every_block() -> None:
    async with serving(agent()) as http:
        answer = await http.post("/v1/messages", json={**ASK, "tools": [TOOL]})
    message = valid(anthropic.types.Message, answer.json())
    assert content_of(message) == CONTENT
    assert message.stop_reason == "tool_use"
    assert message.usage.cache_read_input_tokens == 2
    assert message.usage.input_tokens == 3
    assert message.id.startswith("msg")


async def test_events_are_valid_and_the_clients_stream_accumulates_them() -> None:
    async with serving(agent()) as http:
        answer = await http.post("/v1/messages", json={**ASK, "stream": True})
    events = events_of(answer.content)
    for event in events:
        if event["type"] != "ping":
            valid(anthropic.types.RawMessageStreamEvent, event)
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    start, delta, stop = block
    assert [event["type"] for event in events] == [
        "message_start", "ping", *block, start, delta, delta, stop, start, delta, delta, stop,
        start, stop, "message_delta", "message_stop",
    ]  # fmt: skip
    async with asking(agent()) as client, client.messages.stream(**ASK) as stream:
        message = await stream.get_final_message()
    assert content_of(message) == CONTENT
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("finish", "stop_reason", "shown"),
    [("stop", None, ("end_turn", None)), ("stop", "END", ("stop_sequence", "END")),
     ("length", None, ("max_tokens", None))],
)  # fmt: skip
async def test_the_reason_to_stop_is_told(
    finish: str, stop_reason: str | None, shown: tuple[str, str | None]
) -> None:
    backend = ScriptedBackend("x", ChoiceDelta(finish_reason=finish, stop_reason=stop_reason))
    backend.ends = False
    async with asking(backend) as client:
        message = await client.messages.create(**ASK, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == shown
    assert backend.requests[0].sampling.stop_strings == ("END",)


async def test_an_agents_conversation_becomes_chat_messages() -> None:
    backend = ScriptedBackend()
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm", "signature": ""},
            {"type": "text", "text": "So"},
            {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c0", "content": [
                {"type": "text", "text": "42"}]},
            {"type": "text", "text": "And?"},
        ]},
    ]  # fmt: skip
    async with asking(backend) as client:
        await client.messages.create(
            model="toy", max_tokens=9, system=[{"type": "text", "text": "S"}], messages=messages,
            tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True},
            thinking={"type": "disabled"}, extra_body={"temperature": 0.5, "top_k": 3},
        )  # fmt: skip
    (asked,) = backend.requests
    call = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert asked.messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "So", "reasoning": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c0", "content": "42"},
        {"role": "user", "content": "And?"},
    ]
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert asked.tools == [{"type": "function", "function": function}]
    assert asked.tool_choice == "required"
    assert not asked.parallel_tool_calls
    assert asked.chat_template_kwargs == {"enable_thinking": False, "thinking": False}
    assert (asked.sampling.max_tokens, asked.sampling.top_k) == (9, 3)


async def test_one_tool_can_be_named() -> None:
    backend = ScriptedBackend()
    async with asking(backend) as client:
        await client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "f"})
    assert backend.requests[0].tool_choice == {"type": "function", "function": {"name": "f"}}


async def test_a_prompts_tokens_are_counted() -> None:
    async with asking(ScriptedBackend()) as client:
        found = await client.messages.count_tokens(model="toy", messages=ASK["messages"])
    assert found.input_tokens == 2


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
         "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_in_anthropics_form(
    fields: dict[str, Any], place: str
) -> None:
    async with serving(ScriptedBackend()) as http:
        answer = await http.post("/v1/messages", json={**ASK, **fields})
    assert answer.status_code == 400
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert place in body["error"]["message"]


class NoKey(Access):
    """Knows no key."""

    def principal(self, metadata: Any) -> str:
        raise Unauthenticated("this key is not known")


async def test_errors_are_those_that_the_client_has_classes_for() -> None:
    async with asking(ScriptedBackend(Overloaded("busy"))) as client:
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(**ASK)
    async with asking(ScriptedBackend(), "secret", access=NoKey()) as client:
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            await client.messages.create(**ASK)
    async with serving(ScriptedBackend()) as http:
        missing = await http.get("/v1/messages/batches")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "not_found_error"


async def test_an_engine_that_breaks_ends_the_stream_with_an_error_event() -> None:
    async with asking(ScriptedBackend("Par", EngineFailed("it broke"))) as client:
        stream = await client.messages.create(**ASK, stream=True)
        with pytest.raises(anthropic.APIError, match="it broke"):
            _ = [event async for event in stream]
