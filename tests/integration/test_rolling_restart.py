"""Processes are replaced one by one under 64 running streams: none is lost and none fails."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.grpc_client import RpcChannel
from tests.integration.kserve_client import ask, ids_of, is_final, open_stream
from tests.integration.test_cli import FREE, Running, penstock
from wire.pool import rpc_types

STREAMS = 64
TOKENS = 200
WAIT_S = 45.0


class Load:
    """Keeps streams running, each a request of its own; counts how they end."""

    def __init__(self, channel: RpcChannel) -> None:
        self._channel = channel
        self.running = 0
        self.lengths: list[int] = []
        self.errors: list[str] = []

    async def stream(self, name: str, began: asyncio.Event | None = None) -> None:
        """One request from its beginning to its end."""
        length = 0
        async with open_stream(self._channel) as stream:
            stream.send(ask(name, model="smollm2", max_tokens=TOKENS, ignore_eos=True))
            stream.half_close()
            async for answer in stream:
                if answer.error_message:
                    self.errors.append(answer.error_message)
                    continue
                if not length:
                    self.running += 1
                    if began is not None and self.running == STREAMS:
                        began.set()
                length += len(ids_of(answer.infer_response))
                if is_final(answer.infer_response):
                    self.lengths.append(length)

    async def keep_running(self, number: int, until: asyncio.Event) -> None:
        """One request after another."""
        turn = 0
        while not until.is_set():
            turn += 1
            await self.stream(f"{number}-{turn}")


@asynccontextmanager
async def load_on(grpc: str) -> AsyncIterator[Load]:
    channel = RpcChannel(grpc, rpc_types=rpc_types)
    try:
        yield Load(channel)
    finally:
        await channel.close()


def worker(stack: ExitStack, tmp_path: Path, discovery: str) -> Running:
    flags = ("--engine=sim", "--sim-speedup=1", "--grpc-port=0", "--metrics-port=0")
    return stack.enter_context(penstock(tmp_path, "worker", "smollm2", *flags, discovery))


def front_door(stack: ExitStack, tmp_path: Path, *args: str) -> Running:
    shared = ("--share-port", "--expect-model=smollm2", "--drain-timeout-s=60", "--no-http")
    return stack.enter_context(penstock(tmp_path, "frontend", *shared, *args))


async def stopped(running: Running) -> int:
    running.process.send_signal(signal.SIGTERM)
    return await asyncio.to_thread(running.process.wait, WAIT_S)


@pytest.mark.timeout(200)
async def test_running_streams_outlive_their_front_door_and_new_ones_find_the_next(
    tmp_path: Path,
) -> None:
    discovery = f"--discovery-path={tmp_path / 'discovery'}"
    with ExitStack() as stack:
        await asyncio.to_thread(worker, stack, tmp_path, discovery)
        old = await asyncio.to_thread(front_door, stack, tmp_path, *FREE, discovery)
        port = old.ready["grpc"].rpartition(":")[2]
        place = (f"--grpc-port={port}", "--http-port=0", "--metrics-port=0", discovery)
        async with load_on(old.ready["grpc"]) as load, asyncio.timeout(3 * WAIT_S):
            all_began = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for number in range(STREAMS):
                    tasks.create_task(load.stream(str(number), all_began))
                await all_began.wait()
                new = await asyncio.to_thread(front_door, stack, tmp_path, *place)
                assert new.ready["grpc"] == old.ready["grpc"]
                code = await stopped(old)
            assert (code, load.errors) == (0, [])
            assert load.lengths == [TOKENS] * STREAMS
            async with load_on(new.ready["grpc"]) as later:
                await later.stream("later")
                assert (later.lengths, later.errors) == ([TOKENS], [])


@pytest.mark.timeout(240)
async def test_workers_are_replaced_under_load_without_a_failed_request(tmp_path: Path) -> None:
    discovery = f"--discovery-path={tmp_path / 'discovery'}"
    with ExitStack() as stack:
        workers = [await asyncio.to_thread(worker, stack, tmp_path, discovery) for _ in range(2)]
        door = await asyncio.to_thread(front_door, stack, tmp_path, *FREE, discovery)
        async with load_on(door.ready["grpc"]) as load, asyncio.timeout(4 * WAIT_S):
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for number in range(STREAMS):
                    tasks.create_task(load.keep_running(number, enough))
                codes = [await replaced(stack, tmp_path, discovery, old) for old in workers]
                enough.set()
            assert codes == [0, 0]
            assert load.errors == []
            assert len(load.lengths) >= STREAMS
            assert set(load.lengths) == {TOKENS}


async def replaced(stack: ExitStack, tmp_path: Path, discovery: str, old: Running) -> Any:
    await asyncio.to_thread(worker, stack, tmp_path, discovery)
    return await stopped(old)
