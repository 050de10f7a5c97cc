"""A worker's life once its engine is built: warm up, listen, register; drain, stop."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import msgspec
from prometheus_client import REGISTRY

from runtime.addresses import instance_id_of, reachable_address
from runtime.discovery import Lease, Record
from runtime.discovery_open import open_discovery
from runtime.errors import WorkerLost
from runtime.grpc_options import GrpcOptions
from runtime.lifecycle import Stage, StopRequest, log_waiting, run_stages, stop_on_signals
from runtime.metrics import set_build_info
from runtime.ready_file import remove_ready_file, write_ready_file
from runtime.rpc_server import RpcServer
from runtime.status_server import StatusServer
from runtime.tracing import Tracing, start_tracing
from transport.choice import make_server
from wire.cards import READY, WorkerInstance, instance_kind
from wire.pool import FLEET, KSERVE, POOL, rpc_types
from worker.card import make_card
from worker.config import WorkerConfig
from worker.control import ModelControl
from worker.engine import Engine
from worker.fleet_service import FleetService
from worker.metrics import WorkerCollector
from worker.models import ResolvedModel
from worker.service import WorkerService
from worker.watch import EngineWatch

log = logging.getLogger(__name__)

GRPC_STOP_S = 2.0
CLOSE_LIMIT_S = 15.0


async def serve_worker(
    config: WorkerConfig, engine: Engine, model: ResolvedModel, stop: StopRequest | None = None
) -> int:
    """Serve until `stop`, a signal, or the engine's end; returns the exit code.

    Raises ServingError, perhaps in a group, when the worker cannot start; nothing is left running
    then.
    """
    stop = stop or StopRequest()
    worker = WorkerProcess(config, engine, model)
    hard_limit_s = config.drain_timeout_s + config.withdraw_wait_s + 2 * CLOSE_LIMIT_S
    with stop_on_signals(stop, hard_limit_s=hard_limit_s):
        try:
            await _start_unless_stopped(worker, stop)
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(worker.watch(stop)),
                    tasks.create_task(worker.announce_states()),
                ]
                log.info("stopping: %s", await stop.wait())
                for task in running:
                    task.cancel()
        finally:
            await worker.stop()
    return 1 if worker.failure else 0


async def _start_unless_stopped(worker: "WorkerProcess", stop: StopRequest) -> None:
    """Start; a stop that is asked for meanwhile does not wait for the engine's warm-up."""

    async def cut_short() -> None:
        await stop.wait()
        starting.reschedule(asyncio.get_running_loop().time())

    async with asyncio.TaskGroup() as tasks:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as starting:
                cutting = tasks.create_task(cut_short())
                await worker.start()
        cutting.cancel()


class WorkerProcess:
    """What a worker process holds, and the order in which it comes and goes.

    `failure` says why it must end although nobody asked it to.
    """

    def __init__(self, config: WorkerConfig, engine: Engine, model: ResolvedModel) -> None:
        self.failure: str | None = None
        self._config = config
        self._engine = engine
        self._model = model
        self._discovery = open_discovery(config)
        self._tracing = Tracing()
        self._service: WorkerService | None = None
        self._fleet: FleetService | None = None
        self._watch: EngineWatch | None = None
        self._control: ModelControl | None = None
        self._instance: WorkerInstance | None = None
        self._server: RpcServer | None = None
        self._status: StatusServer | None = None
        self._lease: Lease | None = None
        self._collector: WorkerCollector | None = None

    async def start(self) -> None:
        """Become ready: engine answers, ports open, lease written, in that order."""
        config = self._config
        info = await self._engine.start()
        self._tracing = start_tracing(config.otlp_endpoint, "worker")
        card = make_card(
            self._model.path,
            config.model_name or self._model.name,
            info,
            config.model_alias,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
        )
        service = self._service = WorkerService(self._engine, card, self._tracing)
        watch = self._watch = EngineWatch(service.flights, config)
        control = self._control = ModelControl(service, self._announce)
        self._fleet = FleetService(
            self._engine,
            draining=lambda: service.draining,
            stalled=lambda: watch.stalled,
            control=control.control,
        )
        self._server = make_server(
            services=[service.service, self._fleet.service],
            rpc_types=rpc_types,
            pool=POOL,
            host=config.host,
            port=config.grpc_port,
            options=GrpcOptions(transport=config.grpc_transport),
            tls=config.open_server_tls(),
            access=config.open_fleet_token(),
        )
        self._set_serving(False)
        address = await self._server.start()
        instance_id = instance_id_of(card.name)
        status_url = self._start_status(describe_worker(instance_id, service, watch, control))
        instance = self._instance = WorkerInstance(
            instance_id=instance_id,
            address=reachable_address(address, config.advertise_host),
            card=card,
            engine=info.kind,
            kv_blocks=info.kv_blocks,
            data_parallel_size=info.data_parallel_size,
            max_num_seqs=info.max_num_seqs,
            kv_events=bool(self._engine.kv_logs),
            status_url=status_url,
            version=version("penstock"),
        )
        self._set_serving(True)
        self._lease = await self._discovery.register(
            Record(
                kind=instance_kind(config.namespace),
                id=instance.instance_id,
                value=msgspec.json.encode(instance),
            )
        )
        if config.ready_file is not None:
            bound = {"grpc": address, "metrics": status_url, "models": [card.name]}
            write_ready_file(config.ready_file, bound)
        log.info("ready: %s on %s, %d tokens of context", card.name, address, card.context_length)

    def _start_status(self, describe: Callable[[], Mapping[str, Any]]) -> str:
        assert self._service is not None
        assert self._fleet is not None
        assert self._watch is not None
        set_build_info("worker")
        self._collector = WorkerCollector(self._service, self._watch, self._fleet)
        REGISTRY.register(self._collector)
        self._status = StatusServer(
            host=self._config.status_host,
            port=self._config.metrics_port,
            is_ready=lambda: self.ready,
            describe=describe,
            prefix=self._config.metrics_prefix,
        )
        return self._status.start()

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._lease is not None and self._service is not None and self._service.ready

    async def watch(self, stop: StopRequest) -> None:
        """Ask for the stop when the engine cannot go on."""
        assert self._watch is not None
        self.failure = await self._watch.run()
        stop.request(self.failure)

    async def announce_states(self) -> None:
        """Tell others whenever the model is loaded or unloaded, until cancelled."""
        assert self._control is not None
        await self._control.run()

    async def _announce(self, state: str) -> None:
        assert self._instance is not None
        self._set_serving(state == READY)
        if self._lease is not None:
            instance = msgspec.structs.replace(self._instance, state=state)
            await self._lease.update(msgspec.json.encode(instance))

    async def stop(self) -> None:
        """Leave in order; nothing is waited for after a failure or before anybody has come."""
        stages = [Stage(name="withdraw", action=self._withdraw, limit_s=CLOSE_LIMIT_S)]
        if self._service is not None:
            service = self._service
            if self.failure is None and self._lease is not None:
                wait_s, drain_s = self._config.withdraw_wait_s, self._config.drain_timeout_s
                stages += [
                    Stage(name="front doors", action=lambda: asyncio.sleep(wait_s)),
                    Stage(name="drain", action=lambda: _drain(service, drain_s), limit_s=drain_s),
                ]
            stages.append(Stage(name="cancel", action=lambda: self._cancel(service)))
        stages.append(Stage(name="engine", action=self._engine.close, limit_s=CLOSE_LIMIT_S))
        if self._server is not None:
            stages.append(Stage(name="gRPC", action=self._stop_server, limit_s=CLOSE_LIMIT_S))
        stages += [
            Stage(name="discovery", action=self._discovery.close, limit_s=CLOSE_LIMIT_S),
            Stage(name="traces", action=lambda: asyncio.to_thread(self._tracing.close)),
            Stage(name="status", action=self._stop_status, limit_s=CLOSE_LIMIT_S),
        ]
        await run_stages(stages)

    async def _withdraw(self) -> None:
        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)
        lease, self._lease = self._lease, None
        if self._service is not None and self._fleet is not None:
            self._service.withdraw()
            self._fleet.loads.touch()
        self._set_serving(False)
        if lease is not None:
            await lease.withdraw()

    async def _cancel(self, service: WorkerService) -> None:
        service.drain()
        why = self.failure or "the worker stopped before the answer was complete"
        left = service.flights.abandon(WorkerLost(why))
        if left:
            log.warning("%d requests were given up", left)

    async def _stop_server(self) -> None:
        # After the engine: what was given up has had its error by now.
        if self._service is not None and self._fleet is not None:
            self._service.end_streams()
            self._fleet.end()
        if self._server is not None:
            await self._server.stop(GRPC_STOP_S)

    async def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
        if self._collector is not None:
            REGISTRY.unregister(self._collector)
            self._collector = None

    def _set_serving(self, serving: bool) -> None:
        if self._server is not None and self._service is not None:
            card = self._service.card
            for name in ("", KSERVE, FLEET, card.name, *card.aliases):
                self._server.set_serving(name, serving)


def describe_worker(
    instance_id: str, service: WorkerService, watch: EngineWatch, control: ModelControl
) -> Callable[[], Mapping[str, Any]]:
    """Return what makes the JSON of /health, on the status port's thread."""

    def describe() -> Mapping[str, Any]:
        load = service.load()
        return {
            "process": "worker",
            "version": version("penstock"),
            "instance_id": instance_id,
            "model": service.card.name,
            "engine": service.engine_kind,
            "state": control.state,
            "draining": service.draining,
            "in_flight": service.in_flight,
            "load": {
                "running": load.running,
                "waiting": load.waiting,
                "kv_usage": load.kv_usage,
            },
            "last_step_age_s": _age_s(load.stepped_s),
            "canary": {
                "last_ok_age_s": _age_s(watch.canary_ok_s),
                "failures": watch.canary_failures,
            },
        }

    return describe


def _age_s(when_s: float | None) -> float | None:
    return None if when_s is None else round(time.monotonic() - when_s, 3)


async def _drain(service: WorkerService, limit_s: float) -> None:
    service.drain()
    log_waiting(service.in_flight, limit_s)
    await service.wait_idle()
