"""A worker's life once its engine is built: warm up, listen, register; drain, stop."""

import asyncio
import logging
import re
import socket
import uuid

import msgspec
from prometheus_client import REGISTRY

from runtime.discovery import Lease, Record
from runtime.discovery_open import open_discovery
from runtime.errors import ServingError
from runtime.grpc_server import GrpcServer
from runtime.lifecycle import Stage, StopRequest, log_waiting, run_stages, stop_on_signals
from runtime.ready_file import remove_ready_file, write_ready_file
from runtime.status_server import StatusServer
from wire.cards import INSTANCE_KIND, WorkerInstance
from wire.pool import KSERVE, POOL, rpc_types
from worker.card import make_card
from worker.config import WorkerConfig
from worker.engine import Engine
from worker.metrics import WorkerCollector
from worker.models import ResolvedModel
from worker.service import WorkerService

log = logging.getLogger(__name__)

GRPC_STOP_S = 2.0
CLOSE_LIMIT_S = 15.0
_WILDCARDS = ("0.0.0.0", "::", "")


async def serve_worker(
    config: WorkerConfig, engine: Engine, model: ResolvedModel, stop: StopRequest | None = None
) -> int:
    """Serve until `stop`, a signal, or the engine's end; returns the exit code.

    Raises ServingError when the worker cannot start; nothing is left running then.
    """
    stop = stop or StopRequest()
    worker = WorkerProcess(config, engine, model)
    hard_limit_s = config.drain_timeout_s + config.withdraw_wait_s + 2 * CLOSE_LIMIT_S
    with stop_on_signals(stop, hard_limit_s=hard_limit_s):
        try:
            await worker.start()
            async with asyncio.TaskGroup() as tasks:
                watches = [
                    tasks.create_task(worker.watch_engine(stop)),
                    tasks.create_task(worker.probe_engine(stop)),
                ]
                log.info("stopping: %s", await stop.wait())
                for watch in watches:
                    watch.cancel()
        finally:
            failed = engine.failure is not None or worker.unresponsive
            await worker.stop(failed=failed)
    return 1 if failed else 0


class WorkerProcess:
    """What a worker process holds, and the order in which it comes and goes."""

    def __init__(self, config: WorkerConfig, engine: Engine, model: ResolvedModel) -> None:
        self.unresponsive = False
        self._config = config
        self._engine = engine
        self._model = model
        self._discovery = open_discovery(config.discovery, config.discovery_path)
        self._service: WorkerService | None = None
        self._server: GrpcServer | None = None
        self._status: StatusServer | None = None
        self._lease: Lease | None = None
        self._collector: WorkerCollector | None = None

    async def start(self) -> None:
        """Become ready: engine answers, ports open, lease written, in that order."""
        config = self._config
        info = await self._engine.start()
        card = make_card(
            self._model.path, config.model_name or self._model.name, info, config.model_alias
        )
        self._service = service = WorkerService(self._engine, card)
        self._server = GrpcServer(
            services=[service.service],
            rpc_types=rpc_types,
            pool=POOL,
            host=config.host,
            port=config.grpc_port,
            tls=config.open_server_tls(),
            access=config.open_fleet_token(),
        )
        address = await self._server.start()
        self._collector = WorkerCollector(service, card.name)
        REGISTRY.register(self._collector)
        self._status = StatusServer(
            host=config.status_host,
            port=config.metrics_port,
            is_ready=lambda: self.ready,
            prefix=config.metrics_prefix,
        )
        status_url = self._status.start()
        instance = WorkerInstance(
            instance_id=_instance_id(card.name),
            address=_reachable(address, config.advertise_host),
            card=card,
            engine=info.kind,
            kv_blocks=info.kv_blocks,
            data_parallel_size=info.data_parallel_size,
            status_url=status_url,
        )
        self._set_serving(True)
        self._lease = await self._discovery.register(
            Record(kind=INSTANCE_KIND, id=instance.instance_id, value=msgspec.json.encode(instance))
        )
        if config.ready_file is not None:
            bound = {"grpc": address, "metrics": status_url, "models": [card.name]}
            write_ready_file(config.ready_file, bound)
        log.info("ready: %s on %s, %d tokens of context", card.name, address, card.context_length)

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._lease is not None and self._service is not None and self._service.ready

    async def watch_engine(self, stop: StopRequest) -> None:
        """Stop the process when the engine dies."""
        stop.request(f"the engine failed: {await self._engine.wait_failed()}")

    async def probe_engine(self, stop: StopRequest) -> None:
        """Stop the process when the engine no longer answers."""
        config = self._config
        while not stop.requested:
            await asyncio.sleep(config.probe_interval_s)
            try:
                await self._engine.probe(config.probe_timeout_s)
            except (ServingError, TimeoutError) as error:
                self.unresponsive = True
                why = str(error) or f"no answer for {config.probe_timeout_s:g} s"
                stop.request(f"the engine's probe failed: {why}")

    async def stop(self, *, failed: bool) -> None:
        """Leave in order; `failed` skips all waiting for an engine that will not answer."""
        drain_s = 0.0 if failed else self._config.drain_timeout_s
        wait_s = 0.0 if failed else self._config.withdraw_wait_s
        stages = [Stage(name="withdraw", action=self._withdraw, limit_s=CLOSE_LIMIT_S)]
        if self._service is not None:
            service = self._service
            stages += [
                Stage(name="front doors", action=lambda: asyncio.sleep(wait_s)),
                Stage(name="requests", action=lambda: _drain(service, drain_s), limit_s=drain_s),
            ]
        stages.append(Stage(name="engine", action=self._engine.close, limit_s=CLOSE_LIMIT_S))
        if self._server is not None:
            stages.append(Stage(name="gRPC", action=self._stop_server, limit_s=CLOSE_LIMIT_S))
        stages.append(Stage(name="discovery", action=self._close_discovery, limit_s=CLOSE_LIMIT_S))
        await run_stages(stages)

    async def _withdraw(self) -> None:
        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)
        lease, self._lease = self._lease, None
        self._set_serving(False)
        if lease is not None:
            await lease.withdraw()

    async def _stop_server(self) -> None:
        # After the engine: requests it had to give up have had their error by now.
        if self._service is not None:
            self._service.end_streams()
        if self._server is not None:
            await self._server.stop(GRPC_STOP_S)

    async def _close_discovery(self) -> None:
        await self._discovery.close()
        if self._status is not None:
            self._status.stop()
        if self._collector is not None:
            REGISTRY.unregister(self._collector)
            self._collector = None

    def _set_serving(self, serving: bool) -> None:
        if self._server is not None:
            for service in ("", KSERVE):
                self._server.set_serving(service, serving)


async def _drain(service: WorkerService, limit_s: float) -> None:
    service.drain()
    log_waiting(service.in_flight, limit_s)
    await service.wait_idle()


def _instance_id(name: str) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", f"{name}-{socket.gethostname()}".lower())
    return f"{plain}-{uuid.uuid4().hex[:8]}"


def _reachable(address: str, advertise_host: str | None) -> str:
    """Return host:port as others reach it: a wildcard address is no destination."""
    host, _, port = address.rpartition(":")
    if advertise_host is not None:
        host = advertise_host
    elif host.strip("[]") in _WILDCARDS:
        host = socket.getfqdn()
        if host.startswith("localhost"):
            log.warning(
                "this host calls itself %s: front doors elsewhere need --advertise-host", host
            )
    return f"{host}:{port}"
