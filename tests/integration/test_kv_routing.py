"""Routing by what workers' KV caches hold: simulated workers, real gRPC, one front door."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from router.kv import KvRouter
from router.router import Place, RouterEvent, WorkerJoined
from router.settings import RouterSettings
from runtime.grpc_client import RpcChannel
from runtime.rpc_client import RpcCaller
from server.fleet import plain_channel
from server.follower import WorkerFollower
from tests.integration.kserve_client import infer, open_stream, read
from tests.integration.stack import SimWorker, Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.parameters import set_parameter
from wire.pool import rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

BLOCK = 16
FAST = SimConfig(block_size=BLOCK, kv_blocks=64, context_length=512, timing=SimTiming(speedup=0))


def prompt(seed: int, blocks: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000, 40_000) for _ in range(blocks * BLOCK)]


def token_request(token_ids: list[int], max_tokens: int = 4, **parameters: Any) -> Any:
    message = pb.ModelInferRequest(model_name="sim")
    message.inputs.add(name="input_ids", datatype="INT32", shape=[len(token_ids)])
    message.raw_input_contents.append(b"".join(it.to_bytes(4, "little") for it in token_ids))
    for name, value in {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}.items():
        set_parameter(message.parameters, name, value)
    for name, value in parameters.items():
        set_parameter(message.parameters, name, value)
    return message


async def ask(channel: RpcCaller, token_ids: list[int], **parameters: Any) -> Any:
    """The parameters of the answer, among them where it went."""
    request = token_request(token_ids, penstock_explain_route=True, **parameters)
    return (await infer(channel, request)).parameters


def index_of(stack: Stack, worker: SimWorker) -> set[int]:
    (model,) = stack.door._fleet.models()
    index = model.router.index  # type: ignore[attr-defined]
    return set(index.blocks(Place(worker.name)).tolist())


def agrees(stack: Stack) -> Callable[[], bool]:
    """Whether the router knows of each worker exactly what its own log holds."""

    def look() -> bool:
        return all(
            index_of(stack, worker) == set(worker.engine.kv_logs[0]) for worker in stack.workers
        )

    return look


@asynccontextmanager
async def fleet(
    model_folder: Path, workers: int = 3, **options: Any
) -> AsyncIterator[tuple[Stack, RpcChannel]]:
    async with running_stack(model_folder, workers=workers, sim=FAST, **options) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        try:
            yield stack, channel
        finally:
            await channel.close()


async def test_the_router_knows_each_workers_blocks_through_storing_and_eviction(
    model_folder: Path,
) -> None:
    async with fleet(model_folder) as (stack, channel):
        # Each cache holds 64 blocks: 10 prompts of 8 evict each other.
        for seed in range(30):
            await ask(channel, prompt(seed, 8), penstock_worker=f"worker-{seed % 3}")
        await eventually(agrees(stack))
        assert sum(len(index_of(stack, worker)) for worker in stack.workers) > 100
        for worker in stack.workers:
            assert worker.engine.kv_logs[0].told["removed"] > 0
            worker.engine.clear_cache()
            assert not len(worker.engine.kv_logs[0])
        await eventually(agrees(stack))


async def test_a_conversation_goes_back_to_the_worker_that_holds_its_beginning(
    model_folder: Path,
) -> None:
    async with fleet(model_folder) as (stack, channel):
        conversations = [prompt(seed, 4) for seed in range(4)]
        first = [await ask(channel, it) for it in conversations]
        await eventually(agrees(stack))
        for beginning, before in zip(conversations, first, strict=True):
            after = await ask(channel, beginning + prompt(99, 1))
            assert after["penstock_worker"] == before["penstock_worker"]
            assert after["penstock_overlap_blocks"].int64_param == 4
            assert after["penstock_prompt_blocks"].int64_param == 5
            assert after["cached_tokens"].int64_param == 4 * BLOCK
            assert before["cached_tokens"].int64_param == 0
            assert before["penstock_overlap_blocks"].int64_param == 0


async def test_prompts_of_another_tenant_share_nothing(model_folder: Path) -> None:
    async with fleet(model_folder) as (stack, channel):
        await ask(channel, prompt(1, 4), cache_salt="one")
        await eventually(agrees(stack))
        other = await ask(channel, [*prompt(1, 4), 5], cache_salt="two")
        same = await ask(channel, [*prompt(1, 4), 5], cache_salt="one")
        assert other["penstock_overlap_blocks"].int64_param == 0
        assert other["cached_tokens"].int64_param == 0
        assert same["penstock_overlap_blocks"].int64_param == 4
        assert same["cached_tokens"].int64_param == 4 * BLOCK


async def test_a_pinned_request_goes_there_or_nowhere(model_folder: Path) -> None:
    async with fleet(model_folder) as (_, channel):
        for name in ("worker-2", "worker-0"):
            told = await ask(channel, prompt(1, 2), penstock_worker=name)
            assert told["penstock_worker"].string_param == name
        async with open_stream(channel) as stream:
            stream.send(token_request(prompt(1, 2), penstock_worker="worker-9"))
            (answer,) = await read(stream)
            assert "worker 'worker-9' does not serve sim" in answer.error_message


async def test_a_request_that_does_not_ask_is_not_told(model_folder: Path) -> None:
    async with fleet(model_folder, workers=1) as (_, channel):
        answer = await infer(channel, token_request(prompt(1, 2)))
        assert "penstock_worker" not in answer.parameters


async def test_the_blocks_of_a_worker_that_leaves_are_forgotten_and_its_successor_starts_clean(
    model_folder: Path,
) -> None:
    async with fleet(model_folder, workers=2) as (stack, channel):
        gone = stack.workers[0]
        await ask(channel, prompt(1, 4), penstock_worker=gone.name)
        await eventually(agrees(stack))
        assert index_of(stack, gone)
        await gone.stop()  # without a word: its connection breaks
        await eventually(lambda: gone.name not in stack.door._fleet.models()[0].links)
        assert not index_of(stack, gone)
        told = await ask(channel, [*prompt(1, 4), 5])
        assert told["penstock_overlap_blocks"].int64_param == 0


class Cable:
    """Passes bytes on to a worker until it is cut, and then those of the next connection."""

    def __init__(self) -> None:
        self.target = ""
        self.address = ""
        self.cuts = 0
        self._open: list[asyncio.StreamWriter] = []

    async def lay(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def connect(self, address: str) -> RpcCaller:
        self.target = address
        return plain_channel(self.address)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._open += [writer, far_writer]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pass_on(reader, far_writer))
            tasks.create_task(_pass_on(far_reader, writer))

    def cut(self) -> None:
        self.cuts += 1
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def laid_cable() -> AsyncIterator[Cable]:
    cable = Cable()
    await cable.lay()
    try:
        yield cable
    finally:
        cable.close()


async def test_after_cuts_in_its_connection_a_worker_is_known_as_it_is(model_folder: Path) -> None:
    async with (
        laid_cable() as cable,
        fleet(model_folder, workers=1, connect=cable.connect) as (stack, channel),
    ):
        direct = plain_channel(stack.workers[0].address)
        for number in range(20):
            # Straight to the worker: its cache changes also while nobody listens.
            await infer(direct, token_request(prompt(number, 6)))
            if number % 5 == 2:
                cable.cut()
        await direct.close()
        await eventually(agrees(stack))
        assert cable.cuts == 4
        assert index_of(stack, stack.workers[0])
        assert (await ask(channel, prompt(1, 2)))["penstock_worker"].string_param == "worker-0"


async def test_a_follower_whose_stream_is_cut_goes_on_where_it_was(model_folder: Path) -> None:
    async with (
        laid_cable() as cable,
        fleet(model_folder, workers=1) as (stack, _),
        asyncio.TaskGroup() as tasks,
    ):
        (worker,) = stack.workers
        router = KvRouter(RouterSettings(block_size=BLOCK))
        router.observe(WorkerJoined(worker.name, block_size=BLOCK))
        told: list[str] = []
        follower = WorkerFollower(
            worker.instance(), Telling(router, told), kv_events=True, retry_max_s=0.1, now=float
        )
        channel = cable.connect(worker.address)
        following = tasks.create_task(follower.run(channel))
        direct = plain_channel(worker.address)
        held = worker.engine.kv_logs[0]

        def agreed() -> bool:
            return set(router.index.blocks(Place(worker.name)).tolist()) == set(held)

        for number in range(12):
            await infer(direct, token_request(prompt(number, 6)))
            if number == 0:
                await eventually(lambda: bool(held) and agreed())
            if number % 4 == 1:
                cable.cut()
        await eventually(agreed)
        assert len(held) > 40
        # One snapshot, at the beginning: from then on it had what it missed, and nothing twice.
        assert told.count("BlocksCleared") == 1
        assert told.count("BlocksRemoved") > 0
        following.cancel()
        await direct.close()
        await channel.close()


class Telling:
    """A router that also notes the kinds of facts it is told."""

    def __init__(self, router: KvRouter, told: list[str]) -> None:
        self._router = router
        self._told = told

    def observe(self, event: RouterEvent) -> None:
        self._told.append(type(event).__name__)
        self._router.observe(event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)
