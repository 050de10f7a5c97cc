"""Following vLLM's event sockets. Needs no vLLM: publishers are made of ZeroMQ here."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.waiting import eventually
from wire.block_hash import prefix_hashes
from worker.kv_blocks import KvBlocks
from worker.kv_log import KvLog
from worker.vllm_kv_events import KvSource, KvSubscriber, kv_sources

SIZE = 4
CHAIN = prefix_hashes([1] * 4 * 10, SIZE).tolist()


def batch(number: int) -> bytes:
    """The batch that stores block `number` of CHAIN."""
    event = {
        "type": "BlockStored",
        "block_hashes": [100 + number],
        "parent_block_hash": 99 + number if number else None,
        "token_ids": [1] * SIZE,
        "block_size": SIZE,
        "medium": "GPU",
        "group_idx": 0,
    }
    return msgspec.msgpack.encode([5.0, [event], 0])


# Token ids that no 32-bit integer holds.
STRANGE = {
    "type": "BlockStored",
    "block_hashes": list(range(9)),
    "parent_block_hash": None,
    "token_ids": [2**40] * SIZE * 9,
    "block_size": SIZE,
}


class Publisher:
    """vLLM's side: a PUB socket, and a ROUTER that knows `kept` batches by number."""

    def __init__(self, context: zmq.asyncio.Context, folder: Path) -> None:
        self.source = KvSource(f"ipc://{folder}/kv", f"ipc://{folder}/replay")
        self.kept: dict[int, bytes] = {}
        self._pub = context.socket(zmq.XPUB)
        self._pub.bind(self.source.endpoint)
        self._router = context.socket(zmq.ROUTER)
        self._router.bind(f"ipc://{folder}/replay")

    async def subscribed(self) -> None:
        await self._pub.recv()

    async def send(self, number: int, payload: bytes | None = None) -> None:
        data = batch(number) if payload is None else payload
        await self._pub.send_multipart([b"", number.to_bytes(8, "big"), data])

    async def replay(self) -> None:
        """Answer everybody who asks."""
        while True:
            client, _, start = await self._router.recv_multipart()
            for number, data in self.kept.items():
                if number >= int.from_bytes(start, "big"):
                    parts = [client, b"", b"", number.to_bytes(8, "big"), data]
                    await self._router.send_multipart(parts)
            await self._router.send_multipart([client, b"", b"", b"\xff" * 8, b""])


Followed = tuple[Publisher, KvLog]


@asynccontextmanager
async def following(
    folder: Path, source: Callable[[KvSource], KvSource] = lambda it: it
) -> AsyncIterator[Followed]:
    context = zmq.asyncio.Context()
    kv_log = KvLog()
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            publisher = Publisher(context, folder)
            subscriber = KvSubscriber(source(publisher.source), KvBlocks(kv_log, SIZE))
            running = [tasks.create_task(subscriber.run()), tasks.create_task(publisher.replay())]
            await publisher.subscribed()
            yield publisher, kv_log
            for task in running:
                task.cancel()
    finally:
        context.destroy(linger=0)


async def holds(kv_log: KvLog, *numbers: int) -> None:
    await eventually(lambda: set(kv_log) == {CHAIN[it] for it in numbers})


async def test_batches_are_followed_in_order(tmp_path: Path) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        for number in range(3):
            await publisher.send(number)
        await holds(kv_log, 0, 1, 2)
        assert not kv_log.gaps.total()
        first = kv_log.after(0)
        assert first is not None
        assert first.happened_s == 5.0


async def test_a_gap_is_filled_by_replay(tmp_path: Path) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        publisher.kept = {number: batch(number) for number in range(6)}
        await publisher.send(0)
        await publisher.send(4)
        await publisher.send(5)
        await holds(kv_log, *range(6))
        assert kv_log.gaps == Counter(replayed=1)


async def test_who_comes_late_is_told_what_was_before(tmp_path: Path) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        publisher.kept = {number: batch(number) for number in range(3)}
        await publisher.send(2)
        await holds(kv_log, 0, 1, 2)


@pytest.mark.parametrize("kept", [(), (2, 3), (1, 3)], ids=["nothing", "the end", "with a hole"])
async def test_what_is_lost_for_good_clears_and_what_follows_counts_again(
    tmp_path: Path, kept: tuple[int, ...]
) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        publisher.kept = {number: batch(number) for number in kept}
        await publisher.send(0)
        await publisher.send(4)
        await eventually(lambda: kv_log.ignored["parent"] == 1)
        await holds(kv_log)
        await publisher.send(5, batch(0))
        await holds(kv_log, 0)
        assert kv_log.gaps == Counter(lost=1)


async def test_without_a_replay_socket_a_gap_clears(tmp_path: Path) -> None:
    async with following(tmp_path, lambda it: it._replace(replay_endpoint=None)) as (
        publisher,
        kv_log,
    ):
        await publisher.send(0)
        await publisher.send(2, batch(0))
        await eventually(lambda: kv_log.last_id == 3)
        assert kv_log.told["cleared"] == 1
        await holds(kv_log, 0)


async def test_numbers_that_begin_anew_are_another_engine(tmp_path: Path) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        await publisher.send(0)
        await publisher.send(1)
        await holds(kv_log, 0, 1)
        await publisher.send(0)
        await holds(kv_log, 0)
        assert kv_log.gaps == Counter(lost=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        msgspec.msgpack.encode([1.0, [{"type": "Unheard"}], 0]),
        msgspec.msgpack.encode([1.0, [STRANGE | {"token_ids": ["a"]}], 0]),
        msgspec.msgpack.encode([1.0, [STRANGE], 0]),
    ],
    ids=["no MessagePack", "unknown event", "wrong type", "no token id"],
)
async def test_a_batch_that_cannot_be_read_clears_and_the_next_counts(
    tmp_path: Path, payload: bytes
) -> None:
    async with following(tmp_path) as (publisher, kv_log):
        await publisher.send(0)
        await holds(kv_log, 0)
        await publisher.send(1, payload)
        await holds(kv_log)
        await publisher.send(2, batch(0))
        await holds(kv_log, 0)
        assert kv_log.gaps == Counter(unreadable=1)


async def test_an_address_that_is_none_ends_the_following_alone(tmp_path: Path) -> None:
    kv_log = KvLog()
    async with asyncio.timeout(5):
        await KvSubscriber(KvSource("nowhere"), KvBlocks(kv_log, SIZE)).run()
    assert kv_log.gaps == Counter(lost=1)


def vllm_config(endpoint: str, *, ranks: int = 1, local: int = 1, **events: Any) -> Any:
    settings = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
    return SimpleNamespace(
        kv_events_config=SimpleNamespace(**(settings | events)),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        parallel_config=SimpleNamespace(data_parallel_size=ranks, data_parallel_size_local=local),
    )


def published(endpoint: str, replay: str | None = None) -> Any:
    return SimpleNamespace(endpoint=endpoint, replay_endpoint=replay, topic="t")


def test_addresses_that_vllm_binds_to_are_connected_to() -> None:
    config = vllm_config("tcp://*:5557", ranks=2, local=2)
    ranks = {0: published("tcp://*:5557", "tcp://*:6000"), 1: published("tcp://*:5558")}
    assert kv_sources(config, ranks) == {
        0: KvSource("tcp://127.0.0.1:5557", "tcp://127.0.0.1:6000", "t"),
        1: KvSource("tcp://127.0.0.1:5558", None, "t"),
    }
    config = vllm_config("tcp://*:0")
    bound = {0: published("tcp://10.0.0.1:7")}
    assert kv_sources(config, bound) == {0: KvSource("tcp://10.0.0.1:7", None, "t")}


def test_ranks_of_other_nodes_are_left_out() -> None:
    config = vllm_config("ipc:///f", ranks=2)
    assert list(kv_sources(config, {0: published("ipc:///f"), 1: published("ipc:///f_dp1")})) == [0]


@pytest.mark.parametrize(
    "config",
    [
        vllm_config("tcp://collector:5557"),
        vllm_config("inproc://here"),
        vllm_config("tcp://*:1", enable_kv_cache_events=False),
        vllm_config("tcp://*:1", publisher="null"),
    ],
    ids=["sent elsewhere", "within the engine", "off", "published nowhere"],
)
def test_events_that_nobody_here_can_hear_have_no_source(config: Any) -> None:
    assert kv_sources(config, {0: published(config.kv_events_config.endpoint)}) == {}


def test_no_cache_tells_nothing() -> None:
    config = vllm_config("tcp://*:1")
    config.cache_config.enable_prefix_caching = False
    assert kv_sources(config, {0: published("tcp://*:1")}) == {}
    config.kv_events_config = None
    assert kv_sources(config, {}) == {}
