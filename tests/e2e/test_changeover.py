"""SIGHUP to `penstock serve` replaces front door and vLLM worker under load.

Named so that it runs before the tests that end with stopping the shared server.
"""

import asyncio
import signal

import openai
import psutil
import pytest

from tests.e2e.conftest import MODEL, Served
from tests.waiting import eventually

STREAMS = 64
TOKENS = 4
RESTART_S = 240.0


async def one_stream(client: openai.AsyncOpenAI) -> int:
    """Return how many tokens the answer has."""
    # A short prompt: with a long one the engine computes 64 prompts for minutes on two cores.
    stream = await client.completions.create(
        model=MODEL,
        prompt="Hi",
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    return chunks[-1].usage.completion_tokens


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_a_rolling_restart_under_64_streams_loses_none_and_fails_none(served: Served) -> None:
    old = psutil.Process(served.process.pid).children()
    lengths: list[int] = []
    done = asyncio.Event()

    async def keep_running(client: openai.AsyncOpenAI) -> None:
        while not done.is_set():
            lengths.append(await one_stream(client))

    def replaced() -> bool:
        return not any(child.is_running() for child in old)

    async with openai.AsyncOpenAI(base_url=f"{served.http}/v1", api_key="none") as client:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(STREAMS):
                tasks.create_task(keep_running(client))
            await eventually(lambda: len(lengths) > 0, limit_s=120)
            served.process.send_signal(signal.SIGHUP)
            try:
                await eventually(replaced, limit_s=RESTART_S, look_every_s=0.2)
            finally:
                done.set()
        assert set(lengths) == {TOKENS}
        assert await one_stream(client) == TOKENS
    assert len(psutil.Process(served.process.pid).children()) == len(old)
