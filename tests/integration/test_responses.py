"""The Responses API over HTTP, as openai-python sees it."""

import asyncio
from typing import Any

import openai
import pytest
from openai.types import responses as types
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from gateway_http.config import GatewayConfig
from runtime.access import Access
from runtime.errors import EngineFailed
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import openai_for, serving, wait_for
from tests.integration.openai_validation import events_of, valid
from wire.generate import ChoiceDelta, ToolCallDelta

TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
ASK: dict[str, Any] = {"model": "toy", "input": "Hi"}


def agent() -> ScriptedBackend:
    """Thinks, says something, and calls twice."""
    backend = ScriptedBackend(
        ChoiceDelta(reasoning="Hm"),
        ChoiceDelta(reasoning="m"),
        "So ",
        "be it",
        ChoiceDelta(tool_calls=[ToolCallDelta(index=0, id="c0", name="f", arguments='{"a"')]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=0, arguments=": 1}")]),
        ChoiceDelta(tool_calls=[ToolCallDelta(index=1, id="c1", name="g", arguments="{}")]),
    )
    backend.finish = "tool_calls"
    return backend


async def post(http: Any, **fields: Any) -> Any:
    answer = await http.post("/v1/responses", json={**ASK, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_whole_response_has_every_item_and_is_valid() -> None:
    async with serving(agent()) as http:
        body = await post(http, tools=[TOOL], metadata={"a": "b"}, user="me")
    response = valid(types.Response, body)
    assert [item.type for item in response.output] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    thoughts, message, first, second = response.output
    assert thoughts.content[0].text == "Hmm"
    assert message.content[0].text == response.output_text == "So be it"
    assert (first.call_id, first.name, first.arguments) == ("c0", "f", '{"a": 1}')
    assert (second.call_id, second.arguments) == ("c1", "{}")
    assert response.status == "completed"
    assert response.usage.input_tokens == 5
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.metadata == {"a": "b"}


async def test_events_are_valid_numbered_and_build_the_response() -> None:
    async with serving(agent()) as http:
        answer = await http.post("/v1/responses", json={**ASK, "stream": True, "tools": [TOOL]})
    events = events_of(answer.content)
    for number, event in enumerate(events):
        valid(types.ResponseStreamEvent, event)
        assert event["sequence_number"] == number
    names = [event["type"].removeprefix("response.") for event in events]
    item = ["output_item.added", "content_part.added"]
    part_done = ["content_part.done", "output_item.done"]
    call_done = ["function_call_arguments.done", "output_item.done"]
    assert names == [
        "created", "in_progress",
        *item, *["reasoning_text.delta"] * 2, "reasoning_text.done", *part_done,
        *item, *["output_text.delta"] * 2, "output_text.done", *part_done,
        "output_item.added", *["function_call_arguments.delta"] * 2, *call_done,
        "output_item.added", "function_call_arguments.delta", *call_done,
        "completed",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == []
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert b"event: response.created\n" in answer.content


async def test_the_clients_stream_accumulates_the_response() -> None:
    async with (
        serving(agent()) as http,
        openai_for(http) as client,
        client.responses.stream(**ASK) as stream,
    ):
        async for _ in stream:
            pass
        response = await stream.get_final_response()
    assert response.output_text == "So be it"


async def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    backend = ScriptedBackend("Par")
    backend.finish = "length"
    async with serving(backend) as http:
        body = await post(http, max_output_tokens=16)
        stream = await http.post("/v1/responses", json={**ASK, "stream": True})
    response = valid(types.Response, body)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert events_of(stream.content)[-1]["type"] == "response.incomplete"
    assert backend.requests[0].sampling.max_tokens == 16


async def test_a_conversation_goes_on_from_a_stored_response() -> None:
    backend = agent()
    async with serving(backend) as http, openai_for(http) as client:
        first = await client.responses.create(**ASK, instructions="Be brief", tools=[TOOL])
        outputs: Any = [
            {"type": "function_call_output", "call_id": it, "output": "42"} for it in ("c0", "c1")
        ]
        await client.responses.create(
            model="toy", input=outputs, previous_response_id=first.id, stream=False
        )
        messages = backend.requests[-1].messages
    assert messages is not None
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "So be it"
    assert messages[1]["reasoning"] == "Hmm"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c0", "c1"]
    assert messages[2] == {"role": "tool", "tool_call_id": "c0", "content": "42"}


async def test_stored_responses_are_listed_and_forgotten() -> None:
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        made = await client.responses.create(**ASK)
        assert (await client.responses.retrieve(made.id)).output_text == made.output_text
        page = await http.get(f"/v1/responses/{made.id}/input_items")
        (item,) = valid(types.ResponseItemList, page.json()).data
        assert item.content[0].text == "Hi"
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(made.id)
        await client.responses.delete(made.id)
        for act in (client.responses.retrieve, client.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await act(made.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(**ASK, previous_response_id=made.id)
        assert caught.value.param == "previous_response_id"


async def test_a_long_conversation_is_stored_listed_and_gone_on_from() -> None:
    backend = ScriptedBackend()
    items = [{"role": "user", "content": f"Hi {place}"} for place in range(5000)]
    async with serving(backend) as http:
        first = await post(http, input=items)
        listed = await http.get(f"/v1/responses/{first['id']}/input_items")
        second = await post(http, input="And?", previous_response_id=first["id"])
        await post(http, input=items, previous_response_id=second["id"])
    found = listed.json()["data"]
    assert [it["content"][0]["text"] for it in found] == [it["content"] for it in items]
    assert (found[0]["id"], found[-1]["id"]) == (
        listed.json()["first_id"],
        listed.json()["last_id"],
    )
    answer = {"role": "assistant", "content": first["output"][0]["content"][0]["text"]}
    again = {"role": "user", "content": "And?"}
    assert backend.requests[0].messages == items
    assert backend.requests[2].messages == [*items, answer, again, answer, *items]


async def test_what_is_not_to_be_stored_is_not() -> None:
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        made = await client.responses.create(**ASK, store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    config = GatewayConfig(response_store_items=0)
    async with serving(ScriptedBackend(), config) as http, openai_for(http) as client:
        made = await client.responses.create(**ASK)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


@pytest.mark.parametrize("limit", [{"response_store_items": 2}, {"response_store_bytes": 5000}])
async def test_the_store_is_bounded_and_the_oldest_go_first(limit: dict[str, int]) -> None:
    async with (
        serving(ScriptedBackend(), GatewayConfig(**limit)) as http,  # type: ignore[arg-type]
        openai_for(http) as client,
    ):
        made = [await client.responses.create(**ASK) for _ in range(5)]
        kept = [(await http.get(f"/v1/responses/{it.id}")).status_code == 200 for it in made]
    assert not kept[0]
    assert kept[-1]
    assert kept == sorted(kept)


class TwoKeys(Access):
    """Every key is known by its own name."""

    def principal(self, metadata: Any) -> str:
        return str(metadata["authorization"])


async def test_a_response_is_its_own_keys_alone() -> None:
    async with (
        serving(ScriptedBackend(), access=TwoKeys()) as http,
        openai_for(http, "ann") as ann,
        openai_for(http, "bob") as bob,
    ):
        made = await ann.responses.create(**ASK)
        assert await ann.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await bob.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await bob.responses.create(**ASK, previous_response_id=made.id)


async def test_an_engine_that_breaks_ends_the_stream_as_failed() -> None:
    async with serving(ScriptedBackend("Par", EngineFailed("it broke"))) as http:
        answer = await http.post("/v1/responses", json={**ASK, "stream": True})
        whole = await http.post("/v1/responses", json=ASK)
    last = events_of(answer.content)[-1]
    valid(types.ResponseStreamEvent, last)
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "it broke"}
    assert whole.status_code == 500


async def test_every_field_reaches_the_request() -> None:
    backend = ScriptedBackend()
    schema = {"type": "object"}
    async with serving(backend) as http, openai_for(http) as client:
        await client.responses.create(
            model="toy",
            instructions="Be brief",
            input=[
                {"role": "developer", "content": [{"type": "input_text", "text": "D"}]},
                {"role": "user", "content": "U"},
            ],
            max_output_tokens=7,
            temperature=0.5,
            top_p=0.9,
            tools=[TOOL, {"type": "function", "name": "g", "parameters": None, "strict": None}],
            tool_choice={"type": "allowed_tools", "mode": "required",
                         "tools": [{"type": "function", "name": "g"}]},
            parallel_tool_calls=False,
            text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
            reasoning={"effort": "low"},
            truncation="auto",
        )  # fmt: skip
    (asked,) = backend.requests
    assert asked.messages == [
        {"role": "system", "content": "Be brief"},
        {"role": "system", "content": "D"},
        {"role": "user", "content": "U"},
    ]
    sampling = asked.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert sampling.structured_outputs == {"json": schema}
    assert asked.tools is not None
    assert [tool["function"]["name"] for tool in asked.tools] == ["g"]
    assert asked.tool_choice == "required"
    assert not asked.parallel_tool_calls
    assert asked.truncate_prompt_tokens == -1
    assert asked.chat_template_kwargs == {"reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "image_generation_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"role": "judge", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"temperature": 9}, "temperature"),
        ({"model": ""}, "model"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    async with serving(ScriptedBackend()) as http:
        answer = await http.post("/v1/responses", json={**ASK, **fields})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


async def test_input_is_counted_as_it_would_be_rendered() -> None:
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        found = await client.responses.input_tokens.count(**ASK)
        raw = await http.post("/v1/responses/input_tokens", json=ASK)
    valid(InputTokenCountResponse, raw.json())
    assert found.input_tokens == 2


async def test_log_probabilities_stand_beside_the_text() -> None:
    async with serving(ScriptedBackend("Par", "is")) as http:
        body = await post(http, include=["message.output_text.logprobs"], top_logprobs=2)
    (part,) = valid(types.Response, body).output[0].content
    assert [it.token for it in part.logprobs] == ["Par", "is"]
    assert len(part.logprobs[0].top_logprobs) == 2


async def test_a_client_that_goes_away_frees_the_backend() -> None:
    backend = ScriptedBackend("Par", asyncio.Event())
    async with serving(backend) as http:
        async with http.stream("POST", "/v1/responses", json={**ASK, "stream": True}) as answer:
            async for _ in answer.aiter_raw():
                break
        await wait_for(backend.cancelled)
