"""`penstock serve`: a front door and workers as supervised child processes of one machine."""

import asyncio
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli.credentials import open_api_keys
from cli.examples import announcement
from cli.options import FrontOptions
from runtime.config import (
    argument,
    as_flags,
    child_environment,
    like,
    option,
    parse_config,
    secret_variables,
)
from runtime.errors import InvalidConfig
from runtime.lifecycle import Stage, StopRequest, run_stages, stop_on_signals
from runtime.logs import configure_logging
from runtime.process import private_folder
from runtime.ready_file import remove_ready_file, write_ready_file
from runtime.supervisor import CONFIG_EXIT, Child, ChildFailed, ChildSpec, stop_all
from worker.config import WorkerConfig

_LOG = logging.getLogger(__name__)
# What a child may take beyond its own drain: closing the engine, above all.
_CHILD_CLOSE_S = 45.0
_PROGRESS_S = 5.0
_LOOK_S = 0.1
_FRONT_FLAGS = (
    "host", "grpc_port", "http_port", "metrics_host", "metrics_port", "no_http", "no_grpc",
    "max_body_bytes", "max_message_bytes", "router_policy", "request_timeout_s", "log_level",
    "log_format", "drain_timeout_s", "tls_cert", "tls_key", "tls_client_ca", "api_keys_file",
    "http_head_timeout_s", "http_body_timeout_s", "fleet_token_file",
)  # fmt: skip
# Variables that are not meant for these children: workers are for the front door alone, over
# loopback and without TLS.
_NOT_FOR_WORKERS = ("tls_cert", "tls_key", "tls_client_ca", "api_key")
_NOT_FOR_FRONT = ("worker_tls_ca", "worker_tls_cert", "worker_tls_key", "worker_tls_server_name")
_WORKER_HOST = "127.0.0.1"
_WORKER_FLAGS = (
    "fleet_token_file", "engine", "cache_dir", "log_level", "log_format", "drain_timeout_s",
    "sim_speedup",
    "sim_mean_answer_tokens", "sim_context_length", "sim_block_size", "sim_kv_blocks",
    "sim_max_num_seqs", "sim_max_num_batched_tokens", "sim_die_after_steps",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(FrontOptions):
    """Front door and workers together. vLLM's arguments stand behind `--`."""

    models: tuple[str, ...] = argument(
        help="folder, GGUF file, Hugging Face id, or smollm2", metavar="MODEL"
    )
    model_name: tuple[str, ...] = option(
        (), help="name to serve a model as (default: its own); one per MODEL, in their order"
    )
    workers: int = option(1, help="workers per model")
    engine: str = like(WorkerConfig, "engine")
    cache_dir: Path | None = like(WorkerConfig, "cache_dir")
    sim_speedup: float = like(WorkerConfig, "sim_speedup")
    sim_mean_answer_tokens: int = like(WorkerConfig, "sim_mean_answer_tokens")
    sim_context_length: int | None = like(WorkerConfig, "sim_context_length")
    sim_block_size: int = like(WorkerConfig, "sim_block_size")
    sim_kv_blocks: int = like(WorkerConfig, "sim_kv_blocks")
    sim_max_num_seqs: int = like(WorkerConfig, "sim_max_num_seqs")
    sim_max_num_batched_tokens: int = like(WorkerConfig, "sim_max_num_batched_tokens")
    sim_die_after_steps: int = like(WorkerConfig, "sim_die_after_steps")

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        FrontOptions.__post_init__(self)
        if self.model_name and len(self.model_name) != len(self.models):
            raise InvalidConfig(
                f"{len(self.model_name)} names for {len(self.models)} models", param="model_name"
            )
        if self.workers < 1:
            raise InvalidConfig("workers must be at least 1", param="workers")
        if self.discovery != "file":
            raise InvalidConfig("serve has its own processes: discovery file", param="discovery")
        if self.no_http and self.no_grpc:
            raise InvalidConfig("no_http and no_grpc together leave nothing to serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A prepared model: its folder and the name it is served by."""

    path: Path
    name: str


def serve(argv: Sequence[str]) -> int:
    """Serve until stopped; returns 0, or the reason for failing as an exit code."""
    config, engine_arguments = parse_config(
        ServeConfig,
        argv,
        prog="penstock serve",
        description="Front door and workers on this machine. vLLM's own arguments stand behind --.",
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    # Wrong files fail here, before anything starts.
    config.open_server_tls()
    config.open_fleet_token()
    open_api_keys(config)
    models = _prepare(config)
    folder = private_folder("penstock-serve")
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Serving(config, models, engine_arguments, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(config: ServeConfig) -> list[NamedModel]:
    """Resolve the models here, once, so that a wrong reference fails before anything starts."""
    from worker.models import resolve_model

    say = _teller(config)
    models = []
    given = config.model_name or (None,) * len(config.models)
    for ref, name in zip(config.models, given, strict=True):
        say(f"preparing {ref}")
        resolved = resolve_model(ref, cache_dir=config.cache_dir, progress=say)
        models.append(NamedModel(path=resolved.path, name=name or resolved.name))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise InvalidConfig(f"two models have the same name: {', '.join(names)}", param="models")
    return models


class _Serving:
    """The running children, and the order in which they come and go."""

    def __init__(
        self,
        config: ServeConfig,
        models: Sequence[NamedModel],
        engine_arguments: Sequence[str],
        folder: Path,
    ) -> None:
        self._config = config = _with_own_token(config)
        self._models = models
        self._folder = folder
        self._discovery = config.discovery_path or str(folder / "discovery")
        self._front_ready = folder / "front.json"
        self._front = self._child(
            "front", self._front_command(), self._front_ready, without=_NOT_FOR_FRONT
        )
        self._workers = [
            self._worker(model, number, engine_arguments)
            for model in models
            for number in range(config.workers)
        ]
        self._stop = StopRequest()
        self._failure: ChildFailed | None = None

    async def run(self) -> int:
        """Run everything until a signal, or until a child is given up."""
        config = self._config
        limit_s = 2 * (config.drain_timeout_s + _CHILD_CLOSE_S) + 10
        with stop_on_signals(self._stop, hard_limit_s=limit_s, at_forced_exit=self._abandon):
            async with asyncio.TaskGroup() as tasks:
                for child in (self._front, *self._workers):
                    tasks.create_task(self._keep(child))
                announcing = tasks.create_task(self._announce())
                _LOG.info("stopping: %s", await self._stop.wait())
                announcing.cancel()
                await run_stages(self._stop_stages())
        if self._failure is None:
            return 0
        print(f"penstock: error: {self._failure.message}", file=sys.stderr)
        return CONFIG_EXIT if self._failure.exit_code == CONFIG_EXIT else 1

    async def _keep(self, child: Child) -> None:
        try:
            await child.run()
        except ChildFailed as failure:
            self._failure = self._failure or failure
            self._stop.request(failure.message)

    async def _announce(self) -> None:
        """Wait for the front door to have every model, then say so to people and scripts."""
        ready = await self._wait_ready()
        # Started again after a crash, it is found where it was said to be, also with port 0.
        self._front.add_arguments(_bound_ports(ready))
        if self._config.ready_file is not None:
            write_ready_file(self._config.ready_file, ready)
        if self._config.log_format == "json":
            _LOG.info("ready: %s", ", ".join(ready["models"]))
            return
        sys.stdout.write(announcement(ready, needs=self._config.client_needs))
        sys.stdout.flush()

    async def _wait_ready(self) -> dict[str, Any]:
        say = _teller(self._config)
        loop = asyncio.get_running_loop()
        began = said = loop.time()
        while True:
            ready = self._read_ready()
            if ready is not None:
                return ready
            if loop.time() - said >= _PROGRESS_S:
                said = loop.time()
                say(f"engines are starting ({said - began:.0f} s)")
            await asyncio.sleep(_LOOK_S)

    def _read_ready(self) -> dict[str, Any] | None:
        try:
            ready: dict[str, Any] = json.loads(self._front_ready.read_bytes())
        except OSError:
            return None
        del ready["pid"]
        order = [model.name for model in self._models]
        ready["models"] = sorted(ready["models"], key=order.index)
        return ready

    def _stop_stages(self) -> list[Stage]:
        # The front door first: what it still answers needs the workers.
        term_s = self._config.drain_timeout_s + _CHILD_CLOSE_S
        limit_s = term_s + 5
        return [
            Stage(name="readiness", action=self._withdraw),
            Stage(name="front door", action=lambda: self._front.stop(term_s), limit_s=limit_s),
            Stage(name="workers", action=lambda: stop_all(self._workers, term_s), limit_s=limit_s),
        ]

    async def _withdraw(self) -> None:
        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)

    def _abandon(self) -> None:
        for child in (self._front, *self._workers):
            child.kill()
        with suppress(OSError):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _front_command(self) -> list[str]:
        return [
            "frontend",
            *as_flags(self._config, _FRONT_FLAGS),
            "--discovery=file",
            f"--discovery-path={self._discovery}",
            *(f"--expect-model={model.name}" for model in self._models),
        ]

    def _worker(self, model: NamedModel, number: int, engine_arguments: Sequence[str]) -> Child:
        name = f"{model.name.rpartition('/')[2]}-{number}"
        command = [
            "worker",
            str(model.path),
            f"--model-name={model.name}",
            *as_flags(self._config, _WORKER_FLAGS),
            f"--host={_WORKER_HOST}",
            f"--metrics-host={self._config.status_host}",
            "--grpc-port=0",
            "--metrics-port=0",
            "--discovery=file",
            f"--discovery-path={self._discovery}",
        ]
        ready = self._folder / f"worker-{name}.json"
        behind = ["--", *engine_arguments]
        return self._child(name, command, ready, behind, without=_NOT_FOR_WORKERS)

    def _child(
        self,
        name: str,
        command: list[str],
        ready_file: Path,
        behind: Sequence[str] = (),
        *,
        without: Sequence[str] = (),
    ) -> Child:
        argv = (
            # -P: a folder `cli` where the user happens to stand is not ours.
            sys.executable, "-P", "-m", "cli.main", "--parent-pid", str(os.getpid()),
            *command, f"--ready-file={ready_file}", *behind,
        )  # fmt: skip
        environment = child_environment(without=without)
        environment |= secret_variables(self._config, without=without)
        spec = ChildSpec(name=name, argv=argv, ready_file=ready_file, environment=environment)
        return Child(spec, log_format=self._config.log_format)


def _with_own_token(config: ServeConfig) -> ServeConfig:
    """Give the fleet a token of its own, unless it has one, or other processes may join it."""
    if config.fleet_token or config.fleet_token_file or config.discovery_path:
        return config
    return replace(config, fleet_token=secrets.token_urlsafe(32))


def _bound_ports(ready: dict[str, Any]) -> list[str]:
    """The flags that make a front door listen where this one does."""
    return [
        f"--{name}-port={ready[name].rpartition(':')[2]}"
        for name in ("grpc", "http", "metrics")
        if name in ready
    ]


def _teller(config: ServeConfig) -> Callable[[str], None]:
    """Progress for people on stdout, for machines in the log."""
    if config.log_format == "json":
        return _LOG.info
    return lambda line: print(line, flush=True)
