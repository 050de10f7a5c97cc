"""Tells a router what one worker's KV cache holds and how loaded its engine is."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from router.router import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    LoadReported,
    Place,
    Router,
)
from runtime.errors import InternalError, ServingError, Unsupported, WorkerLost
from runtime.rpc_client import RpcCaller
from server.metrics import EVENT_LAG, KV_EVENTS, KV_RESYNCS
from wire.block_hash import Hashes
from wire.cards import WorkerInstance
from wire.kv_events import (
    Cleared,
    Position,
    Removed,
    SnapshotPart,
    Stored,
    decode_runs,
    watch_request,
)
from wire.penstock_pb2 import KvEventBatch, LoadReport, WatchLoadRequest
from wire.pool import FLEET

log = logging.getLogger(__name__)
# Before a stream that has ended is opened again; the backoff begins with it.
_PAUSE_S = 0.05
# Blocks that the router takes in before other tasks have their turn, half a millisecond.
_BLOCKS_AT_ONCE = 512


class EventGap(ServingError):
    """Events of a KV cache are missing; only a snapshot can follow."""


class WorkerFollower:
    """Follows one worker while the front door is connected to it.

    `steps` moves while the engine makes progress, None until the worker has said so; `stalled` is
    the worker's own word. `now` gives monotonic seconds, the router's clock.
    """

    def __init__(
        self,
        instance: WorkerInstance,
        router: Router,
        *,
        kv_events: bool,
        retry_max_s: float,
        now: Callable[[], float],
    ) -> None:
        self.steps: int | None = None
        self.stalled = False
        self._instance = instance
        self._router = router
        self._kv_events = kv_events
        self._retry_max_s = retry_max_s
        self._now = now
        self._positions: dict[int, Position] = {}
        self._told = 0  # blocks since the last pause

    async def run(self, channel: RpcCaller) -> None:
        """Follow until cancelled. The router must have forgotten the worker's blocks before."""
        self._positions.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(channel, "load", self._load_stream))
            if self._kv_events:
                tasks.create_task(self._again(channel, "KV events", self._kv_stream))

    async def _again(
        self, channel: RpcCaller, what: str, once: Callable[[RpcCaller], Awaitable[None]]
    ) -> None:
        """Read a stream over and over, with backoff while it brings nothing."""
        worker = self._instance.instance_id
        try:
            while True:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(
                        lambda e: isinstance(e, ServingError) and not isinstance(e, Unsupported)
                    ),
                    wait=wait_random_exponential(multiplier=_PAUSE_S, max=self._retry_max_s),
                    reraise=True,
                ):
                    with attempt:
                        await once(channel)
                await asyncio.sleep(_PAUSE_S)  # it may bring one message and end each time
        except Unsupported:
            log.info("worker %s does not tell its %s: it is chosen without", worker, what)

    async def _load_stream(self, channel: RpcCaller) -> None:
        await self._read(channel, "WatchLoad", WatchLoadRequest(), self._take_load)

    async def _kv_stream(self, channel: RpcCaller) -> None:
        request = watch_request(self._positions)
        await self._read(channel, "WatchKvEvents", request, self._take_events)

    async def _read(
        self,
        channel: RpcCaller,
        method: str,
        request: Any,
        take: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Read one stream until it ends; raises ServingError unless it has brought something."""
        brought = False
        try:
            async with channel.stream(FLEET, method) as stream:
                stream.send(request)
                stream.half_close()
                async for message in stream:
                    await take(message)
                    brought = True
        except EventGap as gap:
            log.warning("worker %s: %s; asking for a snapshot", self._instance.instance_id, gap)
        except InternalError:
            log.exception("worker %s: %s cannot be read", self._instance.instance_id, method)
            raise
        except (Unsupported, WorkerLost):
            if not brought:
                raise
        if not brought:
            raise WorkerLost(f"{method} ended without a message")

    async def _take_load(self, report: LoadReport) -> None:
        now = self._now()
        self.steps, self.stalled = report.steps, report.stalled
        for rank in report.ranks:
            self._router.observe(
                LoadReported(
                    self._place(rank.data_parallel_rank),
                    running=rank.running,
                    waiting=rank.waiting,
                    kv_usage=rank.kv_usage,
                    now=now,
                )
            )

    async def _take_events(self, message: KvEventBatch) -> None:
        batch = decode_runs(message)
        model = self._instance.card.name
        place, position = self._place(batch.rank), Position(batch.log_id, batch.last_id)
        part = batch.changes[0] if batch.changes else None
        if isinstance(part, SnapshotPart):
            await self._take_part(place, position, part)
            return
        at = self._positions.get(batch.rank)
        if at is None or at.log_id != batch.log_id or batch.first_id != at.event_id + 1:
            self._positions.pop(batch.rank, None)
            KV_RESYNCS.labels(model).inc()
            raise EventGap(
                f"KV event {batch.first_id} of rank {batch.rank} where {at} was the last"
            )
        applied: Counter[str] = Counter()
        for change in batch.changes:
            match change:
                case Stored(hashes=hashes):
                    await self._tell(BlocksStored, place, hashes)
                    applied["stored"] += len(hashes)
                case Removed(hashes=hashes):
                    await self._tell(BlocksRemoved, place, hashes)
                    applied["removed"] += len(hashes)
                case Cleared():
                    self._router.observe(BlocksCleared(place))
                    applied["cleared"] += 1
        for kind, times in applied.items():
            KV_EVENTS.labels(model, kind).inc(times)
        self._positions[batch.rank] = position
        if batch.happened_s:
            lag_s = datetime.now(UTC).timestamp() - batch.happened_s
            EVENT_LAG.labels(model).observe(max(0.0, lag_s))

    async def _take_part(self, place: Place, position: Position, part: SnapshotPart) -> None:
        if part.first:
            self._router.observe(BlocksCleared(place))
            self._positions.pop(place.rank, None)
            KV_EVENTS.labels(self._instance.card.name, "snapshot").inc()
        await self._tell(BlocksStored, place, part.hashes)
        if part.last:
            self._positions[place.rank] = position

    async def _tell(
        self, event: type[BlocksStored | BlocksRemoved], place: Place, hashes: Hashes
    ) -> None:
        """Tell the router part by part, the deepest first as it keeps them (PrefixIndex)."""
        for end in range(len(hashes), 0, -_BLOCKS_AT_ONCE):
            part = hashes[max(0, end - _BLOCKS_AT_ONCE) : end]
            self._router.observe(event(place, part))
            self._told += len(part)
            if self._told >= _BLOCKS_AT_ONCE:
                self._told = 0
                await asyncio.sleep(0)

    def _place(self, rank: int) -> Place:
        return Place(self._instance.instance_id, rank)
