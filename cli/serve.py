"""`penstock serve`: a front door and workers as supervised child processes of one machine."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from cli.credentials import open_api_keys
from cli.examples import announcement
from cli.family import Family, Member, child_command
from cli.frontend_group import FRONT, front_members, held_ports
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
from runtime.logs import configure_logging
from runtime.metrics import PREFIX
from runtime.process import private_folder
from runtime.supervisor import ChildSpec
from worker.config import WorkerConfig
from worker.main import require_engine

_LOG = logging.getLogger(__name__)
_IF_NO_MEMORY = (
    "take a smaller model or fewer --workers, or give the engine less to do behind --, such as "
    "--max-model-len N or --max-num-seqs N"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(FrontOptions):
    """Front door and workers together. vLLM's arguments stand behind `--`."""

    models: tuple[str, ...] = argument(
        help="folder, GGUF file, Hugging Face id, or smollm2", metavar="MODEL"
    )
    model_name: tuple[str, ...] = option(
        (), help="name to serve a model as (default: its own); one per MODEL, in their order",
        group="Models",
    )  # fmt: skip
    workers: int = option(1, help="workers per model", group="Models", least=1)
    discovery: str = option(
        "file", help="how its own processes find each other", group="Discovery",
        choices=("file", "etcd"),
    )  # fmt: skip
    engine: str = like(WorkerConfig, "engine")
    tool_call_parser: str = like(WorkerConfig, "tool_call_parser")
    reasoning_parser: str = like(WorkerConfig, "reasoning_parser")
    lora_module: tuple[str, ...] = like(WorkerConfig, "lora_module")
    cache_dir: Path | None = like(WorkerConfig, "cache_dir")
    canary_interval_s: float = like(WorkerConfig, "canary_interval_s")
    canary_timeout_s: float = like(WorkerConfig, "canary_timeout_s")
    canary_tokens: str = like(WorkerConfig, "canary_tokens")
    stall_timeout_s: float = like(WorkerConfig, "stall_timeout_s")
    sim_speedup: float = like(WorkerConfig, "sim_speedup")
    sim_mean_answer_tokens: int = like(WorkerConfig, "sim_mean_answer_tokens")
    sim_context_length: int | None = like(WorkerConfig, "sim_context_length")
    sim_block_size: int = like(WorkerConfig, "sim_block_size")
    sim_kv_blocks: int = like(WorkerConfig, "sim_kv_blocks")
    sim_max_num_seqs: int = like(WorkerConfig, "sim_max_num_seqs")
    sim_max_num_batched_tokens: int = like(WorkerConfig, "sim_max_num_batched_tokens")
    sim_task: str = like(WorkerConfig, "sim_task")
    sim_die_after_steps: int = like(WorkerConfig, "sim_die_after_steps")

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        FrontOptions.__post_init__(self)
        if self.model_name and len(self.model_name) != len(self.models):
            raise InvalidConfig(
                f"{len(self.model_name)} names for {len(self.models)} models", param="model_name"
            )
        if self.lora_module and len(self.models) > 1:
            raise InvalidConfig("--lora-module needs one MODEL only", param="lora_module")


def _passed_on(child: type, but: set[str]) -> list[str]:
    """The options of `serve` that a child has too, but those that it gets from elsewhere."""
    theirs = {field.name for field in fields(child) if not field.metadata.get("secret")}
    return [f.name for f in fields(ServeConfig) if f.name in theirs - but]


_FAMILY = {
    "ready_file", "discovery", "discovery_path", "metrics_host", "metrics_port", "metrics_prefix",
    "grpc_port", "http_port", "processes", "restart_limit", "restart_window_s",
}  # fmt: skip
# What concerns clients, while workers are for the front door alone.
_NOT_FOR_WORKERS = ("tls_cert", "tls_key", "tls_client_ca", "api_key")
# Workers listen without TLS.
_NOT_FOR_FRONT = ("worker_tls_ca", "worker_tls_cert", "worker_tls_key", "worker_tls_server_name")
_FRONT_FLAGS = _passed_on(FrontOptions, _FAMILY)
_WORKER_FLAGS = _passed_on(WorkerConfig, {*_FAMILY, *_NOT_FOR_WORKERS, "host", "model_name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A prepared model: its folder, the name it is served by, and the name of its processes."""

    path: Path
    name: str
    process: str


def serve(argv: Sequence[str]) -> int:
    """Serve until stopped; returns the exit code. Raises ChildFailed if a child is given up."""
    config, engine_arguments = parse_config(
        ServeConfig,
        argv,
        prog="penstock serve",
        description="Front door and workers on this machine. vLLM's own arguments stand behind --.",
        examples=(
            "penstock serve smollm2",
            "penstock serve org/model --workers 2 --model-name chat -- --max-model-len 4096",
            "penstock serve smollm2 --engine sim --sim-speedup 0 --no-grpc",
        ),
        rest_for="vLLM",
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    # Wrong files fail here, before anything starts.
    config.open_server_tls()
    config.open_fleet_token()
    open_api_keys(config)
    config = _with_own_token(config)
    require_engine(config.engine)
    models = _prepare(config)
    folder = private_folder("penstock-serve")
    discovery = _discovery_flags(config, folder)
    front = [
        "frontend",
        *as_flags(config, _FRONT_FLAGS),
        *discovery,
        *(f"--expect-model={model.name}" for model in models),
    ]
    import uvloop

    try:
        with held_ports(config) as ports, asyncio.Runner(loop_factory=uvloop.new_event_loop) as run:
            members = front_members(
                config, front, ports, folder, _environment(config, without=_NOT_FOR_FRONT)
            )
            for model in models:
                members += _workers(config, model, folder, discovery, engine_arguments)
            family = Family(
                "serve",
                config,
                members,
                models=[model.name for model in models],
                folder=folder,
                at_ready=partial(_announce, config),
                progress=_teller(config),
            )
            run.run(family.run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _prepare(config: ServeConfig) -> list[NamedModel]:
    """Resolve the models here, once, so that a wrong reference fails before anything starts."""
    from server.text.codec import check_answer_format
    from worker.adapters import read_adapters
    from worker.models import resolve_model

    say = _teller(config)
    found = []
    given = config.model_name or (None,) * len(config.models)
    for ref, name in zip(config.models, given, strict=True):
        say(f"preparing {ref}")
        resolved = resolve_model(ref, cache_dir=config.cache_dir, progress=say)
        check_answer_format(resolved.path, config.tool_call_parser, config.reasoning_parser)
        found.append((resolved.path, name or resolved.name))
    names = [name for _, name in found]
    read_adapters(config.lora_module, names)
    if len(set(names)) < len(names):
        raise InvalidConfig(f"two models have the same name: {', '.join(names)}", param="models")
    return [
        NamedModel(path=path, name=name, process=process)
        for (path, name), process in zip(found, _process_names(names), strict=True)
    ]


def _process_names(models: Sequence[str]) -> list[str]:
    names: list[str] = []
    for model in models:
        short = model.rpartition("/")[2]
        taken = short == FRONT or short in names
        names.append(f"{len(names)}-{short}" if taken else short)
    return names


def _workers(
    config: ServeConfig,
    model: NamedModel,
    folder: Path,
    discovery: Sequence[str],
    engine_arguments: Sequence[str],
) -> list[Member]:
    command = [
        "worker",
        str(model.path),
        f"--model-name={model.name}",
        *as_flags(config, _WORKER_FLAGS),
        "--host=127.0.0.1",
        "--grpc-port=0",
        "--metrics-host=127.0.0.1",
        "--metrics-port=0",
        f"--metrics-prefix={PREFIX}",
        *discovery,
    ]

    def member(name: str) -> Member:
        def make(number: int, _: str) -> ChildSpec:
            ready = folder / f"worker-{name}.{number}.json"
            return ChildSpec(
                name=name,
                argv=child_command(*command, f"--ready-file={ready}", "--", *engine_arguments),
                ready_file=ready,
                environment=_environment(config, without=_NOT_FOR_WORKERS),
                if_no_memory=_IF_NO_MEMORY,
            )

        # A model's only worker has to be replaced before it goes; that needs memory for two.
        return Member(name=name, make=make, is_front=False, surge=config.workers == 1)

    return [member(f"{model.process}-{number}") for number in range(config.workers)]


def _discovery_flags(config: ServeConfig, folder: Path) -> list[str]:
    """Where the children find each other: a private folder unless something is given."""
    if config.discovery == "file" and config.discovery_path is None:
        return ["--discovery=file", f"--discovery-path={folder / 'discovery'}"]
    return as_flags(config, ("discovery", "discovery_path"))


def _environment(config: ServeConfig, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Secrets travel in the environment: command lines are seen by others."""
    environment = child_environment(without=without)
    return environment | secret_variables(config, without=without)


def _with_own_token(config: ServeConfig) -> ServeConfig:
    """Give the fleet a token of its own, unless it has one, or other processes may join it."""
    may_be_joined = config.discovery_path is not None or config.discovery == "etcd"
    if config.fleet_token or config.fleet_token_file or may_be_joined:
        return config
    return replace(config, fleet_token=secrets.token_urlsafe(32))


def _announce(config: ServeConfig, told: dict[str, Any]) -> None:
    """Say that every model is served, to people on stdout, to machines in the log."""
    if config.log_format == "json":
        _LOG.info("ready: %s", ", ".join(told["models"]))
    else:
        _say(announcement(told, needs=config.client_needs))


def _teller(config: ServeConfig) -> Callable[[str], None]:
    """Progress for people on stdout, for machines in the log."""
    return _LOG.info if config.log_format == "json" else _say


def _say(text: str) -> None:
    # Whoever read this may have gone, and serving goes on.
    with suppress(OSError):
        print(text, flush=True)
