"""openai clients through the whole path, with the gateway inside and outside the front door."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway_http.kserve_backend import KServeBackend
from runtime.grpc_client import RpcChannel
from tests.integration.gateway_client import openai_for, serving
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire.pool import rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

CHAT = {
    "model": "sim",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 12,
}
GREEDY = {"model": "sim", "prompt": "Hello there", "temperature": 0, "max_tokens": 12}
SLOW = SimConfig(timing=SimTiming())


@dataclass(frozen=True)
class Setup:
    http: httpx2.AsyncClient
    client: openai.AsyncOpenAI
    stack: Stack


@pytest.fixture(params=["in the front door", "alone"])
async def setup(request: Any, model_folder: Path) -> AsyncIterator[Setup]:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        alone = request.param == "alone"
        backend = KServeBackend(channel) if alone else stack.door.backend
        async with serving(backend) as http, openai_for(http) as client:
            yield Setup(http, client, stack)
        await channel.close()


async def test_streamed_and_whole_chats_have_the_same_text(setup: Setup) -> None:
    whole = await setup.client.chat.completions.create(**CHAT)
    stream = await setup.client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 12
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens > 0


async def test_log_probabilities_cover_the_whole_text(setup: Setup) -> None:
    chat = await setup.client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    content = chat.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == chat.choices[0].message.content
    assert {len(entry.top_logprobs) for entry in content} == {2}
    text = await setup.client.completions.create(**GREEDY, logprobs=1)
    assert len(text.choices[0].logprobs.tokens) == 12


async def test_several_prompts_answer_as_each_alone(setup: Setup) -> None:
    prompts = ["Hello there", "Goodbye then"]
    together = await setup.client.completions.create(**{**GREEDY, "prompt": prompts})
    alone = [
        await setup.client.completions.create(**{**GREEDY, "prompt": prompt}) for prompt in prompts
    ]
    assert [choice.text for choice in together.choices] == [it.choices[0].text for it in alone]


async def test_echo_puts_the_prompt_in_front(setup: Setup) -> None:
    plain = await setup.client.completions.create(**GREEDY)
    echoed = await setup.client.completions.create(**GREEDY, echo=True)
    stream = await setup.client.completions.create(**GREEDY, echo=True, stream=True)
    streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert streamed == echoed.choices[0].text == "Hello there" + plain.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_server_have_their_status_and_code(setup: Setup, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await setup.client.chat.completions.create(**{**CHAT, "model": "x"}, stream=stream)
    length = setup.stack.workers[0].card.context_length
    with pytest.raises(openai.BadRequestError) as too_long:
        await setup.client.completions.create(model="sim", prompt=[5] * length, stream=stream)
    assert unknown.value.code == "model_not_found"
    assert too_long.value.code == "context_length_exceeded"
    assert (await setup.client.chat.completions.create(**CHAT)).choices


@pytest.mark.parametrize("priority", [-1, 2**31, 2**63, 2**70])
async def test_a_priority_beyond_the_wire_is_refused_by_name(setup: Setup, priority: int) -> None:
    answer = await setup.http.post("/v1/chat/completions", json={**CHAT, "priority": priority})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "priority")


@pytest.mark.parametrize("seconds", ["1e13", "1e300"])
async def test_a_time_limit_beyond_all_measure_is_a_long_one(setup: Setup, seconds: str) -> None:
    headers = {"x-request-timeout": seconds}
    answer = await setup.http.post("/v1/completions", json=GREEDY, headers=headers)
    assert answer.status_code == 200


async def test_prompts_of_ids_are_named_as_openai_does(setup: Setup) -> None:
    for prompt in ([2**30], [5] * setup.stack.workers[0].card.context_length):
        answer = await setup.http.post("/v1/completions", json={**GREEDY, "prompt": prompt})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_a_client_that_leaves_frees_the_engine(setup: Setup) -> None:
    body = {**CHAT, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with setup.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_lines())
        assert setup.stack.engine_load == 1
    await eventually(lambda: setup.stack.engine_load == 0)
    await eventually(lambda: setup.stack.door.in_flight == 0)


async def test_a_client_that_leaves_a_unary_request_frees_the_engine(setup: Setup) -> None:
    body = {**CHAT, "max_tokens": 4000, "ignore_eos": True}
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(setup.http.post("/v1/chat/completions", json=body))
        await eventually(lambda: setup.stack.engine_load == 1)
        waiting.cancel()
    await eventually(lambda: setup.stack.engine_load == 0)


async def test_models_and_readiness_are_those_of_the_fleet(setup: Setup) -> None:
    assert [model.id async for model in setup.client.models.list()] == ["sim"]
    assert (await setup.http.get("/ready")).status_code == 200
