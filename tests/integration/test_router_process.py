"""`penstock router`: between front doors and workers, alone, and in numbers."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.discovery import Record
from runtime.discovery_file import FileDiscovery
from runtime.grpc_client import RpcChannel
from tests.integration.kserve_client import ids_of, infer
from tests.integration.test_cli import FREE, SIM, Running, chat, fails, get, penstock
from tests.integration.test_kv_routing import prompt, token_request
from tests.waiting import wait_until
from wire import inference_pb2 as pb
from wire import penstock_pb2
from wire.cards import INSTANCE_KIND, ModelCard, WorkerInstance
from wire.pool import FLEET, KSERVE, rpc_types

MODEL = "smollm2"
WAIT_S = 20.0


@dataclass
class Fleet:
    """Two workers and two routers of them, found by front doors of namespace "front"."""

    flags: tuple[str, ...]
    routers: list[Running]
    workers: list[Running]


def start_router(stack: ExitStack, tmp_path: Path, flags: tuple[str, ...]) -> Running:
    where = ("--namespace=pool", "--register-namespace=front", *flags)
    return stack.enter_context(penstock(tmp_path, "router", FREE[0], FREE[2], *where))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    flags = (f"--discovery-path={tmp_path}/discovery",)
    # Steps of 2 ms: what runs can be looked at.
    engine = (SIM[0], "--sim-speedup=3", "--sim-block-size=16")
    worker = ("worker", MODEL, *engine, FREE[0], FREE[2], "--namespace=pool", *flags)
    with ExitStack() as stack:
        workers = [stack.enter_context(penstock(tmp_path, *worker)) for _ in range(2)]
        routers = [start_router(stack, tmp_path, flags) for _ in range(2)]
        yield Fleet(flags, routers, workers)


@asynccontextmanager
async def channel_to(process: Running) -> AsyncIterator[RpcChannel]:
    channel = RpcChannel(process.ready["grpc"], rpc_types=rpc_types)
    try:
        async with asyncio.timeout(WAIT_S):
            yield channel
    finally:
        await channel.close()


def ask_tokens(token_ids: list[int], max_tokens: int = 4, **parameters: Any) -> Any:
    request = token_request(token_ids, max_tokens, **parameters)
    request.model_name = MODEL
    return request


async def best_worker(channel: RpcChannel, token_ids: list[int], **parameters: Any) -> Any:
    request = penstock_pb2.BestWorkerRequest(request=ask_tokens(token_ids, **parameters))
    return await channel.unary(FLEET, "BestWorker", request, timeout_s=WAIT_S)


async def overlap(channel: RpcChannel, token_ids: list[int]) -> int:
    return int((await best_worker(channel, token_ids)).overlap_blocks)


async def test_any_kserve_client_sends_tokens_and_gets_tokens(fleet: Fleet) -> None:
    async with channel_to(fleet.routers[0]) as channel:
        ready = await channel.unary(
            KSERVE, "ModelReady", pb.ModelReadyRequest(name=MODEL), timeout_s=WAIT_S
        )
        assert ready.ready
        first, again = [await infer(channel, ask_tokens(prompt(1, 4))) for _ in range(2)]
        assert len(ids_of(first)) == 4
        assert ids_of(again) == ids_of(first)


async def test_the_best_worker_is_the_one_that_holds_the_beginning(fleet: Fleet) -> None:
    async with channel_to(fleet.routers[0]) as one, channel_to(fleet.routers[1]) as other:
        before = await best_worker(one, prompt(1, 5))
        assert before.prompt_blocks == 5
        assert before.overlap_blocks == 0
        assert len(before.candidates) == 2
        for pinned in [candidate.worker_id for candidate in before.candidates]:
            seed = 1 + [it.worker_id for it in before.candidates].index(pinned)
            await infer(one, ask_tokens(prompt(seed, 4), penstock_worker=pinned))
            for channel in (one, other):  # each router hears of every cache
                await eventually_holds(partial(overlap, channel, prompt(seed, 5)), lambda n: n == 4)
                best = await best_worker(channel, prompt(seed, 5))
                assert best.worker_id == pinned
                assert best.address in {worker.ready["grpc"] for worker in fleet.workers}


async def eventually_holds(ask: Callable[[], Awaitable[int]], fits: Callable[[int], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not fits(await ask()):
            pass  # each look is a call that yields


async def test_routers_know_of_what_the_others_have_running(fleet: Fleet) -> None:
    async with channel_to(fleet.routers[0]) as one, channel_to(fleet.routers[1]) as other:

        async def active() -> int:
            best = await best_worker(other, prompt(9, 2))
            return max(it.active_blocks for it in best.candidates)

        assert await active() == 0
        async with one.stream(KSERVE, "ModelStreamInfer") as stream:
            stream.send(ask_tokens(prompt(1, 20), max_tokens=4000))
            await eventually_holds(active, lambda blocks: blocks >= 20)
        await eventually_holds(active, lambda blocks: blocks == 0)


def test_routers_restarted_under_load_fail_no_request(fleet: Fleet, tmp_path: Path) -> None:
    flags = (*FREE, *fleet.flags, "--namespace=front", f"--expect-model={MODEL}")
    done = threading.Event()

    def requests(front: Running) -> int:
        count = 0
        while not done.is_set():
            assert chat(front.ready["http"], model=MODEL, max_tokens=20)["choices"]
            count += 1
        return count

    with ExitStack() as stack, penstock(tmp_path, "frontend", *flags) as front:

        def connected() -> int:
            told = json.loads(get(f"{front.ready['metrics']}/health")[1])
            return sum(it["connected"] for model in told["models"] for it in model["workers"])

        wait_until(lambda: connected() == 2, limit_s=WAIT_S)
        with ThreadPoolExecutor(4) as threads:
            counting = [threads.submit(requests, front) for _ in range(4)]
            try:
                for old in fleet.routers:
                    assert old.stop() == 0
                    wait_until(lambda: connected() == 1, limit_s=WAIT_S)
                    start_router(stack, tmp_path, fleet.flags)
                    wait_until(lambda: connected() == 2, limit_s=WAIT_S)
            finally:
                done.set()
            assert all(task.result(WAIT_S) > 0 for task in counting)


def test_a_router_takes_the_first_model_that_has_a_worker_it_can_reach(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path / "discovery", ttl_s=60.0)
    gone = WorkerInstance(
        instance_id="a",
        address="127.0.0.1:1",
        card=ModelCard(name="gone", path="", context_length=8, vocab_size=8, block_size=8),
        engine="sim",
    )
    value = msgspec.json.encode(gone)
    flags = (FREE[0], FREE[2], f"--discovery-path={tmp_path}/discovery")
    with (
        asyncio.Runner() as runner,
    ):
        runner.run(discovery.register(Record(kind=INSTANCE_KIND, id="a", value=value)))
        with (
            penstock(tmp_path, "worker", MODEL, *SIM, *flags),
            penstock(tmp_path, "router", *flags) as router,
        ):
            assert router.ready["models"] == [MODEL]
        runner.run(discovery.close())


def test_a_router_that_would_find_itself_does_not_start(tmp_path: Path) -> None:
    for flags in (("--register-namespace=default",), ("--namespace=a", "--register-namespace=a")):
        code, said = fails("router", FREE[0], FREE[2], *flags)
        assert code == 2
        assert "--register-namespace: the router would find itself" in said
