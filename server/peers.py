"""Routers of the same workers tell each other what they have running there.

Each registers itself in discovery and follows all others. What is told is the whole, so that a
lost message costs nothing: the next one puts it right.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from router.router import Active, PeerLoad, Place, Router
from runtime.discovery import Delete, Discovery, Put, Record, Snapshot
from runtime.errors import ServingError, WorkerLost
from runtime.rpc import Call
from server.fleet import Connect
from wire import penstock_pb2 as pb
from wire.cards import ROUTER_KIND, RouterInstance
from wire.pool import FLEET

log = logging.getLogger(__name__)

TELL_S = 0.1
"""How often a router looks whether its load has changed."""


class ActiveLoadCall:
    """One WatchActiveLoad call (a CallHandler): what runs here, whenever it has changed.

    `router` returns the model's present router; while it raises ServingError nothing runs here.
    """

    def __init__(self, call: Call, router: Callable[[], Router]) -> None:
        self._call = call
        self._router = router
        self._told: dict[Place, Active] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def on_message(self, message: Any) -> None:
        """The one request: begin to tell."""
        if self._timer is None:
            self._tell()

    def on_half_close(self) -> None:
        """The peer says nothing more, as expected."""

    def on_writable(self) -> None:
        """The next look sends what there is."""

    def on_cancel(self) -> None:
        """The peer is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _active(self) -> dict[Place, Active]:
        try:
            return self._router().active()
        except ServingError:
            return {}

    def _tell(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TELL_S, self._tell)
        active = self._active()
        if active == self._told or not self._call.writable:
            return
        self._told = active
        self._call.send(
            pb.ActiveLoad(
                ranks=[
                    pb.ActiveRank(
                        worker_id=place.worker_id,
                        data_parallel_rank=place.rank,
                        active_blocks=it.blocks,
                        prefill_tokens=it.prefill_tokens,
                        requests=it.requests,
                    )
                    for place, it in active.items()
                ]
            )
        )


class Peers:
    """Follows the other routers of `model` and tells its present `router` of their load.

    While `router` raises ServingError there is nobody to tell.
    """

    def __init__(
        self,
        discovery: Discovery,
        connect: Connect,
        *,
        own_id: str,
        model: str,
        router: Callable[[], Router],
        retry_max_s: float = 2.0,
    ) -> None:
        self._discovery = discovery
        self._connect = connect
        self._own_id = own_id
        self._model = model
        self._router = router
        self._retry_max_s = retry_max_s
        self._followed: dict[str, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        """How many other routers there are."""
        return len(self._followed)

    async def run(self) -> None:
        """Follow discovery until cancelled."""
        async with (
            asyncio.TaskGroup() as group,
            aclosing(self._discovery.watch(ROUTER_KIND)) as changes,
        ):
            async for change in changes:
                match change:
                    case Snapshot(records=records):
                        for gone in self._followed.keys() - {record.id for record in records}:
                            self._drop(gone)
                        for record in records:
                            self._put(group, record)
                    case Put(record=record):
                        self._put(group, record)
                    case Delete(id=peer_id):
                        self._drop(peer_id)

    def _put(self, group: asyncio.TaskGroup, record: Record) -> None:
        try:
            peer = msgspec.json.decode(record.value, type=RouterInstance)
        except msgspec.DecodeError as error:
            log.warning("ignoring router record %s: %s", record.id, error)
            return
        if record.id != self._own_id and peer.model == self._model:
            self._drop(record.id)
            task = group.create_task(self._follow(record.id, peer), name=f"peer {record.id}")
            self._followed[record.id] = task
            log.info("router %s is a peer at %s", record.id, peer.address)

    def _drop(self, peer_id: str) -> None:
        task = self._followed.pop(peer_id, None)
        if task is not None:
            task.cancel()

    async def _follow(self, peer_id: str, peer: RouterInstance) -> None:
        channel = self._connect(peer.address)
        try:
            while True:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(ServingError),
                    wait=wait_random_exponential(multiplier=0.05, max=self._retry_max_s),
                ):
                    with attempt:
                        await self._read(peer_id, channel)
        finally:
            await channel.close()

    async def _read(self, peer_id: str, channel: Any) -> None:
        request = pb.WatchActiveLoadRequest(model_name=self._model)
        try:
            async with channel.stream(FLEET, "WatchActiveLoad") as stream:
                stream.send(request)
                stream.half_close()
                async for message in stream:
                    self._router().observe(PeerLoad(peer_id, _active(message)))
        finally:
            with suppress(ServingError):  # raised here it would take a cancellation's place
                self._router().observe(PeerLoad(peer_id, {}))
        raise WorkerLost(f"router {peer_id} ended its stream")


def _active(message: Any) -> dict[Place, Active]:
    return {
        Place(it.worker_id, it.data_parallel_rank): Active(
            blocks=it.active_blocks, prefill_tokens=it.prefill_tokens, requests=it.requests
        )
        for it in message.ranks
    }
