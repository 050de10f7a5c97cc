"""`penstock frontend`: the front door, KServe over gRPC and OpenAI over HTTP in one process."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.options import FrontOptions
from runtime.config import option, parse_config
from runtime.lifecycle import Stage, StopRequest, log_waiting, run_stages, stop_on_signals
from runtime.logs import configure_logging

if TYPE_CHECKING:
    from gateway_http.http_server import HttpServer
    from runtime.grpc_server import GrpcServer
    from runtime.status_server import StatusServer

_LOG = logging.getLogger(__name__)
# What is left to do on a connection once no request is in flight: sending the last bytes.
_CLOSE_S = 2.0
_READY_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig(FrontOptions):
    """One front door process."""

    expect_model: tuple[str, ...] = option(
        (),
        help="model that will be served: until it has a worker, requests for it get 503 and the "
        "front door is not announced as ready; may be repeated",
        group="Models",
    )


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
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))
    return 0


async def _run(config: FrontendConfig) -> None:
    stop = StopRequest()
    with stop_on_signals(stop, hard_limit_s=config.drain_timeout_s + 30):
        process = FrontendProcess(config, stop)
        try:
            async with asyncio.TaskGroup() as tasks:
                await process.start(tasks)
                announcing = tasks.create_task(process.announce())
                _LOG.info("stopping: %s", await stop.wait())
                announcing.cancel()
                # Requests on their way need the fleet's tasks, so the group ends after this.
                await run_stages(process.stop_stages())
                process.end_tasks()
        finally:
            await process.close()


class FrontendProcess:
    """What a front door process holds, and the order in which it comes and goes."""

    def __init__(self, config: FrontendConfig, stop: StopRequest) -> None:
        from runtime.discovery_open import open_discovery
        from server.config import FrontDoorConfig
        from server.front_door import FrontDoor

        self._config = config
        self._stop = stop
        self._discovery = open_discovery(config.discovery, config.discovery_path)
        settings = FrontDoorConfig(
            router_policy=config.router_policy,
            request_timeout_s=config.request_timeout_s,
            expected_models=config.expect_model,
        )
        self._door: FrontDoor = FrontDoor(settings, self._discovery)
        self._bound: dict[str, object] = {}
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None
        self._status: StatusServer | None = None
        self._door_task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._door.is_ready() and not self._stop.requested

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open the ports, then follow the fleet."""
        from runtime.status_server import StatusServer

        config = self._config
        self._status = StatusServer(
            host=config.status_host,
            port=config.metrics_port,
            is_ready=lambda: self.ready,
            prefix=config.metrics_prefix,
        )
        if not config.no_grpc:
            await self._start_grpc()
        if not config.no_http:
            await self._start_http()
        self._bound["metrics"] = self._status.start()
        self._door.on_ready_change = lambda _: self._show_ready()
        self._door_task = tasks.create_task(self._door.run())
        _LOG.info("listening: %s", ", ".join(f"{k} {v}" for k, v in self._bound.items()))

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

    def stop_stages(self) -> list[Stage]:
        """The ordered stop: unready, drain, close the fronts."""
        drain_s = self._config.drain_timeout_s
        stages = [
            Stage(name="readiness", action=self._withdraw),
            Stage(name="requests", action=self._drain, limit_s=drain_s),
        ]
        if self._http is not None:
            http = self._http
            stages.append(Stage(name="HTTP", action=lambda: http.stop(_CLOSE_S)))
        if self._grpc is not None:
            grpc = self._grpc
            stages.append(Stage(name="gRPC", action=lambda: grpc.stop(_CLOSE_S)))
        return stages

    def end_tasks(self) -> None:
        """Cancel what follows the fleet."""
        if self._door_task is not None:
            self._door_task.cancel()

    async def close(self) -> None:
        """Release everything, whether or not the ordered stop has run."""
        if self._http is not None:
            await self._http.stop(0)
        if self._grpc is not None:
            await self._grpc.stop(0)
        await self._discovery.close()
        if self._status is not None:
            self._status.stop()

    async def _start_grpc(self) -> None:
        from runtime.grpc_server import GrpcOptions, GrpcServer
        from wire.pool import POOL, rpc_types

        self._grpc = GrpcServer(
            services=self._door.services,
            rpc_types=rpc_types,
            pool=POOL,
            host=self._config.host,
            port=self._config.grpc_port,
            options=GrpcOptions(max_message_bytes=self._config.max_message_bytes),
        )
        self._bound["grpc"] = await self._grpc.start()

    async def _start_http(self) -> None:
        from gateway_http.app import create_app
        from gateway_http.config import GatewayConfig
        from gateway_http.http_server import HttpServer

        settings = GatewayConfig(
            max_body_bytes=self._config.max_body_bytes,
            request_timeout_s=self._config.request_timeout_s or None,
        )
        self._http = HttpServer(
            create_app(self._door.backend, settings),
            host=self._config.host,
            port=self._config.http_port,
        )
        self._bound["http"] = await self._http.start()

    def _show_ready(self) -> None:
        if self._grpc is not None:
            for name in ("", *(service.name for service in self._door.services)):
                self._grpc.set_serving(name, self.ready)

    async def _withdraw(self) -> None:
        from runtime.ready_file import remove_ready_file

        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)
        self._show_ready()

    async def _drain(self) -> None:
        self._door.drain()
        log_waiting(self._door.in_flight, self._config.drain_timeout_s)
        await self._door.wait_idle()
