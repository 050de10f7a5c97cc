"""What routers tell each other while models come, change and go, and how they part."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest

from router.policies import RoundRobin
from router.router import Active, Choice, Place, Router, RouteRequest, WorkerJoined
from router.settings import RouterSettings
from runtime.discovery import Record
from runtime.discovery_memory import MemoryDiscovery
from runtime.errors import ModelNotFound
from runtime.rpc import Service
from server.fleet import plain_channel
from server.peers import ActiveLoadCall, Peers
from tests.integration.stack import grpc_server
from tests.waiting import eventually
from wire.cards import ROUTER_KIND, RouterInstance
from wire.pool import FLEET

PLACE = Place("worker-0")


def router() -> RoundRobin:
    made = RoundRobin(RouterSettings(block_size=16))
    made.observe(WorkerJoined(PLACE.worker_id))
    return made


def start(where: Router, name: str, tokens: int) -> None:
    request = RouteRequest(request_id=name, token_ids=[5] * tokens)
    where.started(request, Choice(worker_id=PLACE.worker_id), 0.0)


@dataclass
class Told:
    """A router that keeps what its peers have said last."""

    peers: dict[str, dict[Place, Active]] = field(default_factory=dict)

    def observe(self, event: object) -> None:
        self.peers[event.peer_id] = dict(event.active)  # type: ignore[attr-defined]


class OneModel:
    """The router of a model that comes and goes."""

    def __init__(self, present: object) -> None:
        self.present: object | None = present

    def router(self) -> Router:
        if self.present is None:
            raise ModelNotFound("model 'm' is not served here")
        return self.present  # type: ignore[return-value]


@dataclass
class Pair:
    """One router that tells, and one that is told."""

    telling: OneModel
    told: OneModel
    following: asyncio.Task[None]
    peers: Peers

    def heard(self) -> dict[Place, Active] | None:
        assert isinstance(self.told.present, Told)
        return self.told.present.peers.get("teller")


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    telling, told = OneModel(router()), OneModel(Told())
    watch = {"WatchActiveLoad": lambda call: ActiveLoadCall(call, telling.router)}
    server = grpc_server(Service(name=FLEET, unary={}, streams=watch))
    discovery = MemoryDiscovery()
    instance = RouterInstance(model="m", address=await server.start())
    value = msgspec.json.encode(instance)
    await discovery.register(Record(kind=ROUTER_KIND, id="teller", value=value))
    peers = Peers(
        discovery, plain_channel, own_id="told", model="m", router=told.router, retry_max_s=0.1
    )
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(peers.run())
            yield Pair(telling, told, following, peers)
            following.cancel()
    finally:
        await discovery.close()
        await server.stop(0.0)


async def test_a_peer_hears_of_every_change_and_of_the_end() -> None:
    async with pair() as it:
        teller = it.telling.router()
        start(teller, "a", 40)
        await eventually(lambda: it.heard() == {PLACE: Active(3, 40, 1)})
        teller.advanced("a", 9, 1.0)
        await eventually(lambda: it.heard() == {PLACE: Active(4, 0, 1)})
        teller.finished("a", 2.0)
        await eventually(lambda: it.heard() == {})
        start(teller, "b", 16)
        await eventually(lambda: bool(it.heard()))
        it.following.cancel()
        await asyncio.wait([it.following], timeout=5)
        # Nobody tells of it any more: it has nothing running.
        assert it.heard() == {}


async def test_a_model_that_is_loaded_again_is_told_of_by_its_present_router() -> None:
    async with pair() as it:
        start(it.telling.router(), "a", 40)
        await eventually(lambda: bool(it.heard()))
        it.telling.present = router()
        start(it.telling.router(), "b", 160)
        await eventually(lambda: it.heard() == {PLACE: Active(10, 160, 1)})
        it.telling.present = None
        await eventually(lambda: it.heard() == {})


async def test_a_model_that_is_unknown_for_a_while_costs_no_peer() -> None:
    async with pair() as it:
        start(it.telling.router(), "a", 40)
        await eventually(lambda: bool(it.heard()))
        it.told.present = None
        it.telling.router().finished("a", 1.0)
        start(it.telling.router(), "b", 160)
        it.told.present = Told()
        await eventually(lambda: it.heard() == {PLACE: Active(10, 160, 1)})
        assert it.peers.count == 1


@pytest.mark.parametrize("present", [True, False])
async def test_following_ends_when_it_is_told_to(present: bool) -> None:
    async with pair() as it:
        start(it.telling.router(), "a", 40)
        await eventually(lambda: bool(it.heard()))
        if not present:
            it.told.present = None
        it.following.cancel()
        done, _ = await asyncio.wait([it.following], timeout=5)
        if not done:
            it.told.present = Told()  # lets it end
        assert done
