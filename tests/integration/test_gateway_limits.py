"""The front door's limits as OpenAI's clients see them."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from server.config import FrontDoorConfig
from tests.integration.gateway_client import openai_for, serving
from tests.integration.stack import running_stack
from tests.waiting import eventually
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

SLOW = SimConfig(timing=SimTiming())
CHAT = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


async def ask(http: httpx2.AsyncClient, *, headers: dict[str, str], **fields: Any) -> Any:
    return await http.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_busy_model_answers_429_and_says_when_to_come_back(
    model_folder: Path, stream: bool
) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=0)
    async with (
        running_stack(model_folder, sim=SLOW, config=config) as stack,
        serving(stack.door.backend) as http,
        openai_for(http) as client,
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(client.chat.completions.create(**CHAT, max_tokens=100))
        await eventually(lambda: stack.engine_load == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**CHAT, stream=stream)
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "overloaded"
        assert (await running).usage.completion_tokens == 100


@pytest.mark.parametrize("stream", [False, True])
async def test_the_clients_own_limit_ends_the_request_in_the_engine_too(
    model_folder: Path, stream: bool
) -> None:
    crawling = SimConfig(timing=SimTiming(step_ms=2000))
    async with running_stack(model_folder, sim=crawling) as stack, serving(
        stack.door.backend
    ) as http:  # fmt: skip
        answer = await ask(http, headers={"x-request-timeout": "0.2"}, stream=stream)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: stack.engine_load == 0)


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan", ""])
async def test_a_limit_that_is_no_time_is_refused_by_name(model_folder: Path, text: str) -> None:
    async with running_stack(model_folder) as stack, serving(stack.door.backend) as http:
        answer = await ask(http, headers={"x-request-timeout": text})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-request-timeout"
