"""`penstock frontend`: the front door, KServe over gRPC and OpenAI over HTTP in one process."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.credentials import open_api_keys, worker_connector
from cli.options import FrontOptions
from cli.options_workers import WorkerTlsOptions
from runtime.config import option, parse_config
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
from runtime.process import favour_loop, settle_memory

if TYPE_CHECKING:
    from gateway_http.http_server import HttpServer
    from runtime.rpc_server import RpcServer
    from runtime.status_server import StatusServer

_LOG = logging.getLogger(__name__)
# What is left to do on a connection once no request is in flight: sending the last bytes.
_CLOSE_S = 2.0
# For requests that clients sent before they heard that the ports are closed.
_ON_THEIR_WAY_S = 0.2
_READY_LOOK_S = 0.1
# Above it, an engine is starting, and who asks shall be told so.
_SHARED_PORT_WAIT_S = 10.0
# Above the parent's own limit, so that one child that hangs does not cost all the others' metrics.
_MERGE_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig(WorkerTlsOptions, FrontOptions):
    """One front door process."""

    expect_model: tuple[str, ...] = option(
        (),
        help="model that will be served: until it has a worker, requests for it get 503 and the "
        "front door is not announced as ready; may be repeated",
        group="Models",
    )
    share_port: bool = option(
        False, help="let other processes of this user listen on the same ports (SO_REUSEPORT)",
        group="Listening",
    )  # fmt: skip
    metrics_from: str | None = option(
        None, help="URL that the HTTP front takes its /metrics from", group="Listening", hidden=True
    )
    group_folder: Path | None = option(
        None,
        help="folder that keeps what is set at run time, for all processes of a group",
        group="Life cycle",
        hidden=True,
    )
    status_file: Path | None = option(
        None,
        help="file to write the addresses to as soon as they listen",
        group="Life cycle",
        hidden=True,
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        FrontOptions.__post_init__(self)
        _ = self.worker_client_tls


def frontend(argv: Sequence[str]) -> int:
    """Run a front door until it is stopped; returns the exit code."""
    config, _ = parse_config(
        FrontendConfig,
        argv,
        prog="penstock frontend",
        description="The front door: KServe v2 over gRPC, OpenAI over HTTP.",
        examples=(
            "penstock frontend",
            "penstock frontend --host 0.0.0.0 --expect-model smollm2 --log-format json",
            "penstock frontend --config front.yaml --print-config",
        ),
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    if config.processes > 1:
        from cli.frontend_group import run_group

        return run_group(config, argv)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))
    return 0


async def _run(config: FrontendConfig) -> None:
    stop = StopRequest()
    hard_limit_s = config.withdraw_wait_s + config.drain_timeout_s + 30
    with stop_on_signals(stop, hard_limit_s=hard_limit_s):
        process = FrontendProcess(config, stop)
        try:
            async with asyncio.TaskGroup() as tasks:
                await process.start(tasks)
                settle_memory()
                favour_loop()
                announcing = tasks.create_task(process.announce())
                _LOG.info("stopping: %s", await stop.wait())
                announcing.cancel()
                # Requests on their way need the fleet's tasks, so the group ends after this.
                await run_stages(process.stop_stages(tasks))
        finally:
            await process.close()


class FrontendProcess:
    """What a front door process holds, and the order in which it comes and goes."""

    def __init__(self, config: FrontendConfig, stop: StopRequest) -> None:
        from runtime.discovery_open import open_discovery
        from runtime.tracing import start_tracing
        from server.config import FrontDoorConfig
        from server.front_door import FrontDoor

        set_build_info("frontend")

        self._config = config
        self._stop = stop
        self._discovery = open_discovery(config)
        settings = FrontDoorConfig(**config.front_door(), expected_models=config.expect_model)
        self._tracing = start_tracing(config.otlp_endpoint, "frontend")
        self._tls = config.open_server_tls()
        self._keys = open_api_keys(config)
        self._door: FrontDoor = FrontDoor(
            settings,
            self._discovery,
            tracing=self._tracing,
            limits=self._keys,
            connect=worker_connector(
                config.worker_client_tls, config.open_fleet_token(), transport=config.grpc_transport
            ),
        )
        self._bound: dict[str, object] = {}
        self._shown_names: set[str] = set()
        self._grpc: RpcServer | None = None
        self._http: HttpServer | None = None
        self._status: StatusServer | None = None
        self._door_task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._door.is_ready() and not self._stop.requested

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the fleet and open the ports."""
        from runtime.ready_file import write_ready_file
        from runtime.status_server import StatusServer

        config = self._config
        self._status = StatusServer(
            host=config.status_host,
            port=config.metrics_port,
            is_ready=lambda: self.ready,
            describe=self._door.describe,
            prefix=config.metrics_prefix,
        )
        self._door.on_ready_change = self._show_ready
        self._door_task = tasks.create_task(self._door.run())
        if config.share_port:
            await self._await_fleet()
        if not config.no_grpc:
            await self._start_grpc()
        if not config.no_http:
            await self._start_http()
        self._bound["metrics"] = self._status.start()
        if config.status_file is not None:
            write_ready_file(config.status_file, self._bound)
        self._show_ready()
        _LOG.info("listening: %s", ", ".join(f"{k} {v}" for k, v in self._bound.items()))

    async def _await_fleet(self) -> None:
        """Others answer on shared ports: take a part of the requests when able to."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHARED_PORT_WAIT_S):
                await self._door.wait_synced()
                while not (self._stop.requested or self._serves_all()):  # noqa: ASYNC110 - at start only
                    await asyncio.sleep(_READY_LOOK_S)

    def _serves_all(self) -> bool:
        known = {*self._config.expect_model, *self._door.model_names()}
        return known <= set(self._door.ready_models())

    async def announce(self) -> None:
        """Write the ready file once the first look at discovery is done and models are there."""
        from runtime.ready_file import write_ready_file

        await self._door.wait_synced()
        names = await self._await_models()
        if self._config.ready_file is not None:
            write_ready_file(self._config.ready_file, {**self._bound, "models": names})
        _LOG.info("ready: %s", ", ".join(names) or "no model has a worker yet")

    async def _await_models(self) -> list[str]:
        expected = set(self._config.expect_model)
        while not expected <= set(self._door.ready_models()):  # noqa: ASYNC110 - at start only
            await asyncio.sleep(_READY_LOOK_S)
        return self._door.model_names()

    def stop_stages(self, tasks: asyncio.TaskGroup) -> list[Stage]:
        """The ordered stop: unready, closed to the new, drained, given up, closed."""
        drain_s, wait_s = self._config.drain_timeout_s, self._config.withdraw_wait_s
        return [
            Stage(name="readiness", action=self._withdraw),
            waiting_stage("load balancers", wait_s),
            Stage(name="new requests", action=lambda: self._refuse_new(tasks)),
            Stage(name="running requests", action=self._drain, limit_s=drain_s),
            Stage(name="leftovers", action=self._give_up),
            Stage(name="fronts", action=self._stop_fronts),
            Stage(name="workers and discovery", action=self._leave_fleet),
        ]

    async def _leave_fleet(self) -> None:
        if self._door_task is not None:
            self._door_task.cancel()
            await asyncio.wait([self._door_task])
        await self._discovery.close()

    async def close(self) -> None:
        """Release everything, whether or not the ordered stop has run."""
        if self._http is not None:
            await self._http.stop(0)
        if self._grpc is not None:
            await self._grpc.stop(0)
        await self._discovery.close()
        await asyncio.to_thread(self._tracing.close)
        if self._status is not None:
            self._status.stop()

    async def _start_grpc(self) -> None:
        from transport.choice import make_server
        from wire.pool import POOL, rpc_types

        self._grpc = make_server(
            services=self._door.services,
            rpc_types=rpc_types,
            pool=POOL,
            host=self._config.host,
            port=self._config.grpc_port,
            options=self._config.grpc_options(
                max_message_bytes=self._config.max_message_bytes,
                share_port=self._config.share_port,
                transport=self._config.grpc_transport,
            ),
            tls=self._tls,
            access=self._keys,
        )
        self._bound["grpc"] = await self._grpc.start()

    async def _start_http(self) -> None:
        from gateway_http.app import create_app
        from gateway_http.config import GatewayConfig
        from gateway_http.http_server import HttpServer

        settings = GatewayConfig(
            request_timeout_s=self._config.request_timeout_s or None, **self._config.http_front()
        )
        self._http = HttpServer(
            create_app(
                self._door.backend,
                settings,
                self._metrics(),
                access=self._keys,
                routing=self._door.routing,
            ),
            host=self._config.host,
            port=self._config.http_port,
            reuse_port=self._config.share_port,
            tls=self._tls,
            head_timeout_s=self._config.http_head_timeout_s,
            body_timeout_s=self._config.http_body_timeout_s,
        )
        self._bound["http"] = await self._http.start()

    def _metrics(self) -> Callable[[], bytes]:
        """One of several front doors shows the metrics of all, which its parent has."""
        from runtime.metrics import metrics_text
        from runtime.status_client import ask

        url = self._config.metrics_from
        if url is not None:
            return lambda: ask(url, limit_s=_MERGE_LIMIT_S).body
        return lambda: metrics_text(self._config.metrics_prefix)

    def _show_ready(self) -> None:
        if self._grpc is None:
            return
        stopping = self._stop.requested
        readiness = self._door.readiness()
        readiness |= {service.name: readiness[""] for service in self._door.services}
        readiness = dict.fromkeys(self._shown_names - readiness.keys(), False) | readiness
        self._shown_names |= readiness.keys()
        for name, ready in readiness.items():
            self._grpc.set_serving(name, ready and not stopping)

    async def _withdraw(self) -> None:
        from runtime.ready_file import remove_ready_file

        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)
        self._door.withdraw()
        self._show_ready()

    async def _refuse_new(self, tasks: asyncio.TaskGroup) -> None:
        """Close the ports first: a request that is on its way is still taken."""
        limit_s = self._config.drain_timeout_s + _CLOSE_S
        if self._http is not None:
            self._http.refuse_new()
        if self._grpc is not None:
            tasks.create_task(self._grpc.refuse_new(limit_s))
        await asyncio.sleep(_ON_THEIR_WAY_S)
        self._door.drain()

    async def _drain(self) -> None:
        log_waiting(self._door.in_flight, self._config.drain_timeout_s)
        await self._door.wait_idle()

    async def _give_up(self) -> None:
        if self._door.in_flight:
            _LOG.warning("giving up %d requests that still run", self._door.in_flight)
            self._door.give_up()

    async def _stop_fronts(self) -> None:
        async with asyncio.TaskGroup() as closing:
            if self._http is not None:
                closing.create_task(self._http.stop(_CLOSE_S))
            if self._grpc is not None:
                closing.create_task(self._grpc.stop(_CLOSE_S))
