"""Follows the cache events that vLLM publishes over ZeroMQ, each data-parallel rank its own."""

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio

from worker.kv_blocks import EngineEvent, KvBlocks
from worker.kv_log import KvLog

log = logging.getLogger(__name__)

REPLAY_TIMEOUT_S = 5.0
# Batches that wait here while the event loop is busy; vLLM's own limit on its side.
_QUEUED_BATCHES = 100_000
_REPLAY_END = b"\xff" * 8
_SEQUENCE_BYTES = 8


class KvSource(NamedTuple):
    """Where one rank publishes; all addresses are to be connected to."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


class EventBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What vLLM publishes at the end of a step; `happened_s` in seconds since the Unix epoch."""

    happened_s: float
    events: list[EngineEvent]
    data_parallel_rank: int | None = None


def private_events_config(folder: Path) -> Any:
    """Return a KVEventsConfig whose sockets are files in `folder`, which only we can enter.

    The events hold all prompts. A TCP publisher would bind to an address of the whole network.
    vLLM gives each rank a file of its own only where the name says "inproc".
    """
    from vllm.config.kv_events import KVEventsConfig

    return KVEventsConfig(
        enable_kv_cache_events=True,
        endpoint=f"ipc://{folder}/inproc-kv",
        replay_endpoint=f"ipc://{folder}/inproc-kv-replay",
    )


def kv_sources(config: Any, published: dict[int, Any]) -> dict[int, KvSource]:
    """Return where the ranks of a started engine publish; empty if nobody here can listen.

    `config` is its VllmConfig, `published` what AsyncLLM.get_kv_event_sources says. Ranks on
    other nodes are left out, with a warning.
    """
    asked = config.kv_events_config
    if asked is None or not asked.enable_kv_cache_events or asked.publisher != "zmq":
        return {}
    if not config.cache_config.enable_prefix_caching:
        return {}
    if not _binds(asked.endpoint) or asked.endpoint.startswith("inproc://"):
        log.warning(
            "vLLM sends its KV events to %s only: routing has none of this worker", asked.endpoint
        )
        return {}
    local = config.parallel_config.data_parallel_size_local
    found = {
        rank: KvSource(
            _reachable(it.endpoint), it.replay_endpoint and _reachable(it.replay_endpoint), it.topic
        )
        for rank, it in sorted(published.items())
        if rank < local
    }
    if len(found) < config.parallel_config.data_parallel_size:
        log.warning("routing has the KV events of %d data-parallel ranks only", len(found))
    return found


def _binds(endpoint: str) -> bool:
    """Whether vLLM's publisher binds to this address; to others it connects."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def _reachable(endpoint: str) -> str:
    return endpoint.replace("*", "127.0.0.1").replace("[::]", "[::1]")


class KvSubscriber:
    """Brings one rank's events to its KvBlocks, in order and without gaps.

    Batches that were missed are asked for again; where that fails, or a batch cannot be read,
    everything is forgotten: a router then knows too little for a while, and nothing wrong.
    `log.gaps` counts how it went: "replayed", "lost", or "unreadable".
    """

    def __init__(self, source: KvSource, blocks: KvBlocks) -> None:
        self._source = source
        self._blocks = blocks
        self._next = 0
        self._decoder = msgspec.msgpack.Decoder(EventBatch)

    async def run(self) -> None:
        """Follow until cancelled; never raises, whatever comes."""
        context = zmq.asyncio.Context()
        try:
            with context.socket(zmq.SUB) as socket:
                socket.ipv6 = True
                socket.rcvhwm = _QUEUED_BATCHES
                socket.subscribe(self._source.topic)
                socket.connect(self._source.endpoint)
                while True:
                    await self._take(context, await socket.recv_multipart())
                    # With a message at hand a receive does not let others run.
                    await asyncio.sleep(0)
        except (zmq.ZMQError, OSError):
            log.exception("KV events of rank %d cannot be followed", self._log.rank)
            self._forget("lost")
        finally:
            context.destroy(linger=0)

    @property
    def _log(self) -> KvLog:
        return self._blocks.log

    async def _take(self, context: zmq.asyncio.Context, frames: list[bytes]) -> None:
        try:
            _, sequence, payload = frames
            number = int.from_bytes(sequence, "big")
            if number < self._next:
                log.warning("KV events of rank %d begin anew", self._log.rank)
                self._forget("lost")
                self._next = 0
            if number > self._next:
                await self._fill_gap(context, number)
            self._next = number + 1
            self._apply(payload)
        except (ValueError, msgspec.MsgspecError):
            self._forget("unreadable")
            log.exception("a batch of KV events cannot be read")
        except zmq.ZMQError:
            raise
        except Exception:
            # The engine's requests are tasks of the same group: they must not end with this one.
            self._forget("unreadable")
            log.exception("a batch of KV events cannot be followed")

    def _apply(self, payload: bytes) -> None:
        batch = self._decoder.decode(payload)
        self._blocks.apply(batch.events, batch.happened_s)

    def _forget(self, outcome: str) -> None:
        self._log.gaps[outcome] += 1
        self._blocks.clear(time.time())  # noqa: TID251 - a date for other machines

    async def _fill_gap(self, context: zmq.asyncio.Context, end: int) -> None:
        """Apply the batches from the one expected up to `end`, or forget everything."""
        missed = end - self._next
        payloads = await self._replay(context, end)
        if len(payloads) != missed:
            log.warning("%d batches of KV events of rank %d are lost", missed, self._log.rank)
            self._forget("lost")
            return
        for payload in payloads:
            self._apply(payload)
            await asyncio.sleep(0)
        self._log.gaps["replayed"] += 1

    async def _replay(self, context: zmq.asyncio.Context, end: int) -> list[bytes]:
        """Return what the publisher still has of the batches expected before `end`, gapless."""
        found: list[bytes] = []
        if self._source.replay_endpoint is None:
            return found
        with context.socket(zmq.DEALER) as socket, suppress(TimeoutError):
            socket.linger = 0
            socket.ipv6 = True
            socket.connect(self._source.replay_endpoint)
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await socket.send_multipart([b"", self._next.to_bytes(_SEQUENCE_BYTES, "big")])
                while True:
                    *_, sequence, payload = await socket.recv_multipart()
                    number = int.from_bytes(sequence, "big")
                    if sequence == _REPLAY_END or number >= end:
                        break
                    if number == self._next + len(found):
                        found.append(payload)
        return found


def follow(
    sources: dict[int, KvSource], logs: Iterable[KvLog], block_size: int, no_adapter: str = ""
) -> list[KvSubscriber]:
    """Return a subscriber for each rank's log that has a source.

    `no_adapter` is the name of an adapter that stands for none.
    """
    return [
        KvSubscriber(sources[it.rank], KvBlocks(it, block_size, no_adapter))
        for it in logs
        if it.rank in sources
    ]
