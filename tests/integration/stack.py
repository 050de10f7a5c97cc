"""A whole fleet in one process and event loop: front door and simulated workers over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from runtime.api_keys import ApiKeys
from runtime.discovery import Lease, Record
from runtime.discovery_memory import MemoryDiscovery
from runtime.grpc_options import GrpcOptions
from runtime.rpc import CallInfo
from runtime.rpc_server import RpcServer
from runtime.tls import ServerIdentity
from runtime.tracing import Tracing
from server.config import FrontDoorConfig
from server.fleet import Connect, plain_channel
from server.front_door import FrontDoor
from tests.transports import transport
from tests.waiting import eventually
from transport.choice import make_server
from wire.cards import INSTANCE_KIND, ModelCard, WorkerInstance
from wire.pool import POOL, rpc_types
from worker.card import make_card
from worker.control import ModelControl
from worker.fleet_service import FleetService
from worker.service import WorkerService
from worker.sim_engine import SimConfig, SimEngine


async def _at_once() -> None:
    """Nothing is waited for."""


class SimWorker:
    """One simulated worker on a port of its own. It waits for `before_answer` in Control."""

    def __init__(
        self,
        name: str,
        card: ModelCard,
        engine: SimEngine,
        server: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.card = card
        self.engine = engine
        self.service = WorkerService(engine, card)
        self.control = ModelControl(self.service, self._announce)
        self.fleet = FleetService(
            engine, draining=lambda: self.service.draining, control=self._control
        )
        self.server = grpc_server(self.service.service, self.fleet.service, **(server or {}))
        self.before_answer: Callable[[], Awaitable[None]] = _at_once
        self.lease: Lease | None = None
        self.address = ""

    async def start(self, discovery: MemoryDiscovery) -> None:
        await self.engine.start()
        self.address = await self.server.start()
        await self.register(discovery)

    async def register(self, discovery: MemoryDiscovery) -> None:
        """Register, as if just started."""
        value = msgspec.json.encode(self.instance())
        self.lease = await discovery.register(Record(kind=INSTANCE_KIND, id=self.name, value=value))

    async def _control(self, message: Any, info: CallInfo) -> Any:
        answer = await self.control.control(message, info)
        await self.before_answer()
        return answer

    async def _announce(self, state: str) -> None:
        assert self.lease is not None
        await self.lease.update(msgspec.json.encode(self.instance()))

    def instance(self) -> WorkerInstance:
        """What it says of itself in discovery."""
        return WorkerInstance(
            instance_id=self.name,
            address=self.address,
            card=self.card,
            engine="sim",
            kv_blocks=self.engine.info.kv_blocks,
            max_num_seqs=self.engine.info.max_num_seqs,
            kv_events=bool(self.engine.kv_logs),
            state=self.control.state,
        )

    async def leave(self) -> None:
        """Withdraw from discovery; what runs here goes on."""
        assert self.lease is not None
        await self.lease.withdraw()

    async def stop(self) -> None:
        self.fleet.end()
        await self.server.stop(0.0)
        await self.engine.close()


class Stack:
    """The front door, its address and its workers."""

    def __init__(
        self,
        door: FrontDoor,
        server: RpcServer,
        grpc: str,
        workers: list[SimWorker],
        discovery: MemoryDiscovery,
    ) -> None:
        self.door = door
        self.server = server
        self.discovery = discovery
        self.grpc = grpc
        self.workers = workers

    @property
    def engine_load(self) -> int:
        """Requests running or waiting in any engine."""
        loads = [worker.engine.load() for worker in self.workers]
        return sum(load.running + load.waiting for load in loads)


def grpc_server(*services: object, port: int = 0, **options: Any) -> RpcServer:
    return make_server(
        services=services,  # type: ignore[arg-type]
        rpc_types=rpc_types,
        pool=POOL,
        host="127.0.0.1",
        port=port,
        options=GrpcOptions(transport=transport()),
        **options,
    )


@asynccontextmanager
async def running_stack(
    model_folder: Path,
    *,
    workers: int = 1,
    config: FrontDoorConfig | None = None,
    sim: SimConfig | None = None,
    keys: ApiKeys | None = None,
    tls: ServerIdentity | None = None,
    worker_server: Mapping[str, Any] | None = None,
    connect: Connect = plain_channel,
    connected: bool = True,
    tracing: Tracing | None = None,
) -> AsyncIterator[Stack]:
    """Start everything, wait until it is ready, and stop it all at the end.

    `keys` and `tls` are the front's; `worker_server` are further arguments of the workers' gRPC
    servers, which `connect` makes the front door's channels to. `connected` false does not wait
    for the workers to be connected; `tracing` is the front door's.
    """
    discovery = MemoryDiscovery()
    door = FrontDoor(
        config or FrontDoorConfig(), discovery, tracing=tracing, limits=keys, connect=connect
    )
    async with AsyncExitStack() as resources, asyncio.TaskGroup() as tasks:
        resources.push_async_callback(discovery.close)
        started = []
        for number in range(workers):
            engine = SimEngine(sim or SimConfig())
            card = make_card(model_folder, "sim", engine.info)
            worker = SimWorker(f"worker-{number}", card, engine, worker_server)
            await worker.start(discovery)
            resources.push_async_callback(worker.stop)
            started.append(worker)
        controls = [tasks.create_task(worker.control.run()) for worker in started]
        running = tasks.create_task(door.run())
        server = grpc_server(*door.services, access=keys, tls=tls)
        address = await server.start()
        stack = Stack(door, server, address, started, discovery)
        try:
            if connected:
                await eventually(lambda: sum(len(m.links) for m in door._fleet.models()) == workers)
            yield stack
        finally:
            await server.stop(0.0)
            for task in (running, *controls):
                task.cancel()
