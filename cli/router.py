"""`penstock router`: the router behind a worker's interface, for fronts other than ours."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cli.credentials import worker_connector
from cli.options_grpc import GrpcServerOptions
from cli.options_routing import RoutingOptions
from cli.options_workers import WorkerTlsOptions
from runtime.config import option, parse_config
from runtime.errors import InvalidConfig
from runtime.lifecycle import (
    Stage,
    StopRequest,
    log_waiting,
    run_stages,
    stop_on_signals,
    waiting_stage,
)
from runtime.logs import configure_logging
from runtime.metrics import set_build_info
from runtime.options import MAX_PORT, FleetOptions, ProcessOptions
from runtime.options_discovery import DiscoveryOptions

if TYPE_CHECKING:
    from runtime.discovery import Lease
    from runtime.rpc_server import RpcServer
    from runtime.status_server import StatusServer
    from server.models import ServedModel
    from wire.cards import WorkerInstance
    from worker.service import WorkerService

_LOG = logging.getLogger(__name__)
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(
    WorkerTlsOptions,
    GrpcServerOptions,
    RoutingOptions,
    DiscoveryOptions,
    FleetOptions,
    ProcessOptions,
):
    """One router of the workers of one model."""

    grpc_port: int = option(
        8001, help="port of the KServe service, tokens in and out; 0 picks a free one",
        group="Listening", least=0, most=MAX_PORT,
    )  # fmt: skip
    model_name: str | None = option(
        None, help="model whose workers it routes to (default: the first that has one)",
        group="Models",
    )  # fmt: skip
    register_namespace: str | None = option(
        None, help="namespace to register in as if it were a worker, so that front doors there "
        "send their requests through it (default: none)", group="Discovery",
    )  # fmt: skip
    advertise_host: str | None = option(
        None, help="host that others reach it by (default: --host, or this host's)",
        group="Discovery",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        ProcessOptions.__post_init__(self)
        self.check_discovery()
        _ = self.worker_client_tls
        if self.register_namespace == self.namespace:
            raise InvalidConfig(
                "--register-namespace: the router would find itself among its workers; take a "
                "namespace other than --namespace",
                param="register_namespace",
            )


def router(argv: Sequence[str]) -> int:
    """Run a router until it is stopped; returns the exit code."""
    config, _ = parse_config(
        RouterConfig,
        argv,
        prog="penstock router",
        description="Routes KServe token requests to the workers that suit them best.",
        examples=(
            "penstock router --grpc-port 8011 --metrics-port 8012",
            "penstock router --namespace pool-a --register-namespace front --discovery etcd",
        ),
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))
    return 0


async def _run(config: RouterConfig) -> None:
    stop = StopRequest()
    with stop_on_signals(stop, hard_limit_s=config.withdraw_wait_s + config.drain_timeout_s + 30):
        process = RouterProcess(config)
        try:
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(process.start(tasks))
                _LOG.info("stopping: %s", await stop.wait())
                starting.cancel()
                await run_stages(process.stop_stages())
        finally:
            await process.close()


class RouterProcess:
    """What a router process holds, and the order in which it comes and goes."""

    def __init__(self, config: RouterConfig) -> None:
        from runtime.addresses import instance_id_of
        from runtime.discovery_open import open_discovery
        from runtime.tracing import start_tracing
        from server.config import FrontDoorConfig
        from server.fleet import Fleet

        set_build_info("router")
        self._config = config
        self._id = instance_id_of("router")
        self._discovery = open_discovery(config)
        self._connect = worker_connector(
            config.worker_client_tls, config.open_fleet_token(), transport=config.grpc_transport
        )
        settings = FrontDoorConfig(
            routing=config.routing,
            namespace=config.namespace,
            worker_stall_s=config.worker_stall_s,
            model_linger_s=config.model_linger_s,
        )
        self._tracing = start_tracing(config.otlp_endpoint, "router")
        self._tls = config.open_server_tls()
        self._fleet = Fleet(settings, self._discovery, self._connect, load_text=lambda card: None)
        self._service: WorkerService | None = None
        self._grpc: RpcServer | None = None
        self._status: StatusServer | None = None
        self._leases: list[Lease] = []
        self._instance: WorkerInstance | None = None
        self._following: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._service is not None and self._service.ready

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the fleet, wait for the model's first worker, open the port, register."""
        from runtime.process import settle_memory
        from runtime.ready_file import write_ready_file
        from runtime.status_server import StatusServer

        config = self._config
        self._status = StatusServer(
            host=config.status_host,
            port=config.metrics_port,
            is_ready=lambda: self.ready,
            describe=self.describe,
            prefix=config.metrics_prefix,
        )
        bound: dict[str, object] = {"metrics": self._status.start()}
        self._following.append(tasks.create_task(self._fleet.run()))
        model = await self._first_model()
        address = await self._open(model, tasks)
        await self._register(model, address, str(bound["metrics"]))
        bound |= {"grpc": address, "models": [model.card.name]}
        settle_memory()
        if config.ready_file is not None:
            write_ready_file(config.ready_file, bound)
        _LOG.info("ready: %s on %s", model.card.name, address)

    async def _first_model(self) -> "ServedModel":
        wanted = self._config.model_name
        changed = asyncio.Event()
        self._fleet.on_ready_change = changed.set
        await self._fleet.wait_synced()
        said = False
        while True:
            changed.clear()
            model = self._ready_model()
            if model is not None:
                self._fleet.on_ready_change = self._show_ready
                return model
            if not said:
                said = True
                _LOG.info("waiting for a worker of %s", wanted or "any model")
            await changed.wait()

    def _ready_model(self) -> "ServedModel | None":
        wanted = self._config.model_name
        for model in self._fleet.models():
            if model.ready and wanted in (None, *model.card.names):
                return model
        return None

    async def _open(self, model: "ServedModel", tasks: asyncio.TaskGroup) -> str:
        from cli.router_engine import RouterEngine
        from runtime.rpc import Service
        from server.peers import ActiveLoadCall, Peers
        from server.token_router import TokenRouter
        from transport.choice import make_server
        from wire.pool import FLEET, POOL, rpc_types
        from worker.control import ModelControl
        from worker.service import WorkerService

        name, policy = model.card.name, self._config.router_policy
        routing = TokenRouter(self._fleet, name, policy)
        self._service = WorkerService(RouterEngine(routing), model.card, self._tracing)
        control = ModelControl(self._service, self._announce)
        self._following.append(tasks.create_task(control.run()))
        fleet_service = Service(
            name=FLEET,
            unary={"BestWorker": routing.best_worker, "Control": control.control},
            streams={
                "WatchActiveLoad": lambda call: ActiveLoadCall(call, lambda: routing.model.router)
            },
        )
        self._grpc = make_server(
            services=[self._service.service, fleet_service],
            rpc_types=rpc_types,
            pool=POOL,
            host=self._config.host,
            port=self._config.grpc_port,
            options=self._config.grpc_options(transport=self._config.grpc_transport),
            tls=self._tls,
            access=self._config.open_fleet_token(),
        )
        address = await self._grpc.start()
        self._show_ready()
        peers = Peers(
            self._discovery,
            self._connect,
            own_id=self._id,
            model=name,
            router=lambda: routing.model.router,
        )
        self._following.append(tasks.create_task(peers.run()))
        return address

    async def _register(self, model: "ServedModel", address: str, status_url: str) -> None:
        import msgspec

        from runtime.addresses import reachable_address
        from runtime.discovery import Record
        from wire.cards import ROUTER_KIND, RouterInstance, WorkerInstance, instance_kind

        reachable = reachable_address(address, self._config.advertise_host)
        records: list[tuple[str, Any]] = [
            (ROUTER_KIND, RouterInstance(model=model.card.name, address=reachable))
        ]
        if self._config.register_namespace is not None:
            instance = WorkerInstance(
                instance_id=self._id,
                address=reachable,
                card=model.card,
                engine="router",
                status_url=status_url,
                version=version("penstock"),
            )
            records.append((instance_kind(self._config.register_namespace), instance))
            self._instance = instance
        for kind, value in records:
            record = Record(kind=kind, id=self._id, value=msgspec.json.encode(value))
            self._leases.append(await self._discovery.register(record))

    async def _announce(self, state: str) -> None:
        """Tell front doors whether to send requests; its workers stay as they are."""
        import msgspec

        self._show_ready()
        if self._instance is not None and self._leases:
            value = msgspec.structs.replace(self._instance, state=state)
            await self._leases[-1].update(msgspec.json.encode(value))

    def describe(self) -> dict[str, Any]:
        """What /health tells; may be called by any thread."""
        service = self._service
        return {
            "process": "router",
            "version": version("penstock"),
            "instance_id": self._id,
            "in_flight": service.in_flight if service else 0,
            "draining": bool(service and service.draining),
            "models": [
                {
                    "name": model.card.name,
                    "ready": model.ready,
                    "workers": [link.describe() for link in self._fleet.links_of(model)],
                }
                for model in self._fleet.models()
            ],
        }

    def _show_ready(self) -> None:
        if self._grpc is None or self._service is None:
            return
        card = self._service.card
        for name in ("", self._service.service.name, *card.names):
            self._grpc.set_serving(name, self._service.ready)

    def stop_stages(self) -> list[Stage]:
        """The ordered stop: withdrawn, drained, given up, closed."""
        drain_s = self._config.drain_timeout_s
        return [
            Stage(name="withdraw", action=self._withdraw),
            waiting_stage("front doors", self._config.withdraw_wait_s),
            Stage(name="drain", action=self._drain, limit_s=drain_s),
            Stage(name="cancel", action=self._cancel),
            Stage(name="gRPC", action=self._stop_grpc),
            Stage(name="workers and discovery", action=self._leave_fleet),
        ]

    async def _withdraw(self) -> None:
        from runtime.ready_file import remove_ready_file

        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)
        if self._service is not None:
            self._service.withdraw()
        self._show_ready()
        for lease in self._leases:
            await lease.withdraw()

    async def _drain(self) -> None:
        if self._service is not None:
            self._service.drain()
            log_waiting(self._service.in_flight, self._config.drain_timeout_s)
            await self._service.wait_idle()

    async def _cancel(self) -> None:
        from runtime.errors import WorkerLost

        if self._service is not None:
            self._service.drain()
            why = WorkerLost("the router stopped before the answer was complete")
            left = self._service.flights.abandon(why)
            if left:
                _LOG.warning("%d requests were given up", left)

    async def _stop_grpc(self) -> None:
        if self._service is not None:
            self._service.end_streams()
        if self._grpc is not None:
            await self._grpc.stop(_CLOSE_S)

    async def _leave_fleet(self) -> None:
        for task in self._following:
            task.cancel()
        if self._following:
            await asyncio.wait(self._following)
        await self._discovery.close()

    async def close(self) -> None:
        """Release everything, whether or not the ordered stop has run."""
        if self._grpc is not None:
            await self._grpc.stop(0)
        await self._discovery.close()
        await asyncio.to_thread(self._tracing.close)
        if self._status is not None:
            self._status.stop()
