"""`penstock serve`: a front door and workers as supervised child processes of one machine."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cli.examples import announcement
from cli.family import Family, Member, child_command
from cli.frontend_group import FRONT, front_members, held_ports
from cli.options import FrontOptions
from runtime.config import argument, as_flags, child_environment, like, option, parse_config
from runtime.errors import InvalidConfig
from runtime.logs import configure_logging
from runtime.metrics import PREFIX
from runtime.process import private_folder
from runtime.supervisor import ChildSpec
from worker.config import WorkerConfig

_LOG = logging.getLogger(__name__)
_IF_NO_MEMORY = (
    "take a smaller model or fewer --workers, or give the engine less to do behind --, such as "
    "--max-model-len N or --max-num-seqs N"
)
_FRONT_FLAGS = (
    "host", "no_http", "no_grpc", "max_body_bytes", "max_message_bytes", "router_policy",
    "request_timeout_s", "log_level", "log_format", "drain_timeout_s",
)  # fmt: skip
_WORKER_FLAGS = (
    "host", "engine", "cache_dir", "log_level", "log_format", "drain_timeout_s", "sim_speedup",
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
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ModuleNotFoundError("serve needs an engine", name="vllm")
    models = _prepare(config)
    folder = private_folder("penstock-serve")
    discovery = config.discovery_path or str(folder / "discovery")
    front = [
        "frontend",
        *as_flags(config, _FRONT_FLAGS),
        "--discovery=file",
        f"--discovery-path={discovery}",
        *(f"--expect-model={model.name}" for model in models),
    ]
    import uvloop

    try:
        with held_ports(config) as ports, asyncio.Runner(loop_factory=uvloop.new_event_loop) as run:
            members = front_members(config, front, ports, folder, child_environment())
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
    from worker.models import resolve_model

    say = _teller(config)
    found = []
    given = config.model_name or (None,) * len(config.models)
    for ref, name in zip(config.models, given, strict=True):
        say(f"preparing {ref}")
        resolved = resolve_model(ref, cache_dir=config.cache_dir, progress=say)
        found.append((resolved.path, name or resolved.name))
    names = [name for _, name in found]
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
    discovery: str,
    engine_arguments: Sequence[str],
) -> list[Member]:
    command = [
        "worker",
        str(model.path),
        f"--model-name={model.name}",
        *as_flags(config, _WORKER_FLAGS),
        "--grpc-port=0",
        "--metrics-host=127.0.0.1",
        "--metrics-port=0",
        f"--metrics-prefix={PREFIX}",
        "--discovery=file",
        f"--discovery-path={discovery}",
    ]

    def member(name: str) -> Member:
        def make(number: int, _: str) -> ChildSpec:
            ready = folder / f"worker-{name}.{number}.json"
            return ChildSpec(
                name=name,
                argv=child_command(*command, f"--ready-file={ready}", "--", *engine_arguments),
                ready_file=ready,
                environment=child_environment(),
                if_no_memory=_IF_NO_MEMORY,
            )

        # A model's only worker has to be replaced before it goes; that needs memory for two.
        return Member(name=name, make=make, is_front=False, surge=config.workers == 1)

    return [member(f"{model.process}-{number}") for number in range(config.workers)]


def _announce(config: ServeConfig, told: dict[str, Any]) -> None:
    """Say that every model is served, to people on stdout, to machines in the log."""
    if config.log_format == "json":
        _LOG.info("ready: %s", ", ".join(told["models"]))
    else:
        _say(announcement(told))


def _teller(config: ServeConfig) -> Callable[[str], None]:
    """Progress for people on stdout, for machines in the log."""
    return _LOG.info if config.log_format == "json" else _say


def _say(text: str) -> None:
    # Whoever read this may have gone, and serving goes on.
    with suppress(OSError):
        print(text, flush=True)
