"""Watching a worker's KV cache and load over real gRPC, with the simulated engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtime.errors import Unauthenticated, Unsupported
from runtime.grpc_client import ClientStream, RpcChannel
from runtime.shared_token import SharedToken
from tests.integration.stack import running_stack
from tests.integration.worker_stack import WAIT_S, Worker, ask, serving
from tests.kv_follower import Follower
from wire.block_hash import prefix_hashes
from wire.kv_events import Position, decode_batch, watch_request
from wire.penstock_pb2 import WatchLoadRequest
from wire.pool import FLEET, rpc_types
from worker.kv_log import KvLog
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

SIZE = 4


@asynccontextmanager
async def small_worker(model_folder: Path, kv_blocks: int = 64) -> AsyncIterator[Worker]:
    """A worker whose cache is soon full."""
    sizes = {"block_size": SIZE, "kv_blocks": kv_blocks, "context_length": 4 * kv_blocks}
    async with serving(model_folder, **sizes) as worker:
        yield worker


@asynccontextmanager
async def watching(channel: RpcChannel, method: str, request: Any) -> AsyncIterator[ClientStream]:
    async with channel.stream(FLEET, method) as stream, asyncio.timeout(2 * WAIT_S):
        stream.send(request)
        stream.half_close()
        yield stream


async def follow(follower: Follower, stream: ClientStream, until: Callable[[], bool]) -> None:
    while not until():
        follower.take(decode_batch(await anext(stream)))


@asynccontextmanager
async def following(worker: Worker, follower: Follower) -> AsyncIterator[ClientStream]:
    """Follow rank 0 from where `follower` stands."""
    positions = {0: follower.position} if follower.position else {}
    async with watching(worker.channel, "WatchKvEvents", watch_request(positions)) as stream:
        yield stream


def caught_up(follower: Follower, log: KvLog) -> Callable[[], bool]:
    return lambda: follower.position == Position(log.log_id, log.last_id)


async def infer(worker: Worker, first: int, prompt: int = 20) -> list[int]:
    """Have a prompt of its own answered; returns all tokens but the last, which none computes."""
    message = ask(prompt=prompt, max_tokens=4)
    token_ids = list(range(first, first + prompt))
    message.raw_input_contents[0] = b"".join(it.to_bytes(4, "little") for it in token_ids)
    answer = await worker.infer(message)
    return [*token_ids, *answer.delta.token_ids][:-1]


async def test_a_watcher_sees_what_requests_store_and_evict(model_folder: Path) -> None:
    async with small_worker(model_folder) as worker:
        (log,) = worker.engine.kv_logs
        follower = Follower()
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, log))
            assert follower.blocks == set()
            tokens = await infer(worker, 100)
            await follow(follower, stream, caught_up(follower, log))
            assert follower.blocks == set(prefix_hashes(tokens, SIZE).tolist())
            for number in range(20):
                await infer(worker, 200 + 30 * number)
            await follow(follower, stream, caught_up(follower, log))
            assert follower.blocks == set(log)
            assert not follower.blocks & set(prefix_hashes(tokens, SIZE).tolist())
            worker.engine.clear_cache()
            await follow(follower, stream, caught_up(follower, log))
            assert follower.blocks == set()
            assert follower.snapshots == 1


async def test_a_cut_watch_resumes_without_a_snapshot(model_folder: Path) -> None:
    async with small_worker(model_folder) as worker:
        (log,) = worker.engine.kv_logs
        follower = Follower()
        for number in range(4):
            async with following(worker, follower) as stream:
                await infer(worker, 100 + 30 * number)
                await follow(follower, stream, caught_up(follower, log))
            await infer(worker, 1000 + 30 * number)
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, log))
        assert follower.blocks == set(log)
        assert follower.snapshots == 1


async def test_who_is_too_far_behind_or_knows_another_log_gets_a_snapshot(
    model_folder: Path,
) -> None:
    async with small_worker(model_folder) as worker:
        short = KvLog(max_events=4)
        worker.engine.kv_logs = (short,)
        follower = Follower()
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, short))
        for block in range(1, 20):
            short.store([block])
            short.commit(0.0)
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, short))
        assert follower.blocks == set(short)
        assert follower.snapshots == 2
        worker.engine.kv_logs = (KvLog(),)
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, worker.engine.kv_logs[0]))
        assert follower.blocks == set()


async def test_a_reader_that_sleeps_holds_little_and_ends_with_what_is_there(
    model_folder: Path,
) -> None:
    async with small_worker(model_folder) as worker:
        log = KvLog(max_events=50)
        worker.engine.kv_logs = (log,)
        follower = Follower()
        async with following(worker, follower) as stream:
            await follow(follower, stream, caught_up(follower, log))
            # More than all buffers on the way hold: 40 MB.
            for batch in range(2_000):
                log.store(range(1 + 2_500 * batch, 2_501 + 2_500 * batch))
                for block in list(log) if batch % 10 == 9 else ():
                    log.remove(block)
                log.commit(0.0)
                await asyncio.sleep(0)
            await follow(follower, stream, caught_up(follower, log))
        assert follower.blocks == set(log)
        assert follower.snapshots > 1


async def test_load_follows_the_requests(slow_worker: Worker) -> None:
    async with watching(slow_worker.channel, "WatchLoad", WatchLoadRequest()) as stream:
        first = await anext(stream)
        assert [(it.running, it.waiting) for it in first.ranks] == [(0, 0)]
        async with slow_worker.stream() as requests:
            requests.send(ask(max_tokens=100))
            while not (report := await anext(stream)).ranks[0].running:
                pass
            assert report.ranks[0].kv_usage > 0
            assert report.ranks[0].cache_queried_tokens == 40
            steps = report.steps
            assert (await anext(stream)).steps > steps
        while (await anext(stream)).ranks[0].running:
            pass
        slow_worker.service.drain()
        slow_worker.fleet.loads.touch()
        assert (await anext(stream)).draining


async def test_watching_ends_with_ok_when_the_worker_stops(worker: Worker) -> None:
    follower = Follower()
    async with following(worker, follower) as stream:
        await follow(follower, stream, lambda: follower.position is not None)
        worker.fleet.end()
        assert [message async for message in stream] == []


async def test_a_worker_routes_nothing_and_one_without_events_says_so(worker: Worker) -> None:
    worker.engine.kv_logs = ()
    async with following(worker, Follower()) as stream:
        with pytest.raises(Unsupported, match="KV cache"):
            await anext(stream)
    async with worker.channel.stream(FLEET, "BestWorker") as stream:
        with pytest.raises(Unsupported):
            await anext(stream)


async def test_a_stranger_watches_nothing(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("token-of-the-fleet")
    token = SharedToken(file=file, flag="--fleet-token-file")
    async with running_stack(
        model_folder,
        sim=SimConfig(timing=SimTiming(speedup=0)),
        worker_server={"access": token},
        connected=False,
    ) as stack:
        channel = RpcChannel(stack.workers[0].address, rpc_types=rpc_types)
        for method, message in (
            ("WatchKvEvents", watch_request({})),
            ("WatchLoad", WatchLoadRequest()),
        ):
            async with watching(channel, method, message) as stream:
                with pytest.raises(Unauthenticated):
                    await anext(stream)
        await channel.close()


async def test_reflection_describes_the_fleet_service(worker: Worker) -> None:
    async with grpc.aio.insecure_channel(worker.channel.address) as raw:
        call = reflection_pb2_grpc.ServerReflectionStub(raw).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert FLEET in [service.name for service in listed]
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=FLEET))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
