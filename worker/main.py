"""Composition of a worker process: model, engine, and what serves them."""

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from runtime.errors import InvalidConfig, ServingError
from worker.adapters import Adapter, read_adapters
from worker.config import WorkerConfig
from worker.engine import Engine
from worker.models import ResolvedModel, resolve_model
from worker.sim_engine import SimEngine
from worker.sim_model import sim_config_for

log = logging.getLogger(__name__)


def run_worker(
    config: WorkerConfig,
    engine_arguments: Sequence[str] = (),
    *,
    check_model: Callable[[Path], None] = lambda _: None,
) -> int:
    """Serve until a signal or the engine's end; returns the exit code, 1 when the engine died.

    `engine_arguments` are vLLM's own. `check_model` raises InvalidConfig when the model in a folder
    does not go with what else is set. Call it in the main thread of a process that has imported
    neither gRPC nor torch and runs no other thread; logging is configured. Raises ServingError
    when the worker cannot start.
    """
    config.require_free_ports()
    # Before the engine, which takes its time, finds them wrong.
    config.open_server_tls()
    config.open_fleet_token()
    require_engine(config.engine)
    model = resolve_model(config.model, cache_dir=config.cache_dir, progress=log.info)
    check_model(model.path)
    names = (config.model_name or model.name, *config.model_alias)
    adapters = read_adapters(config.lora_module, names)
    try:
        engine = build_engine(config, model, adapters, engine_arguments)
    except ServingError:
        log.debug("the engine was not built", exc_info=True)
        raise
    # gRPC must not be imported before the engine's process is forked.
    from worker.serving import serve_worker  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(serve_worker(config, engine, model))
        if code:
            # A broken engine may keep threads that never end; its processes die with this one.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def require_engine(engine: str) -> None:
    """Raise InvalidConfig when this installation lacks what the engine is made of."""
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InvalidConfig(
            "vLLM is not installed: install penstock[worker] for a GPU or penstock[worker-cpu], "
            "or use the simulated engine",
            param="engine",
        )


def build_engine(
    config: WorkerConfig,
    model: ResolvedModel,
    adapters: tuple[Adapter, ...],
    arguments: Sequence[str],
) -> Engine:
    """Return the engine, with vLLM's model loaded: that blocks for seconds to minutes."""
    if config.engine == "sim":
        if arguments:
            raise InvalidConfig("the simulated engine takes no arguments behind --")
        context = config.sim_context_length
        sim = sim_config_for(model.path, config.sim, context_length=context)
        sim = replace(sim, adapters=tuple(it.name for it in adapters))
        return SimEngine(sim, kv_events=not config.no_kv_events)
    # Only this engine needs vLLM, which costs seconds and hundreds of megabytes.
    from worker.vllm_engine import VllmEngine  # noqa: PLC0415
    from worker.vllm_start import VllmSettings  # noqa: PLC0415

    log.info("starting vLLM with %s", model.path)
    engine = VllmEngine(
        VllmSettings(
            model_path=str(model.path),
            arguments=tuple(arguments),
            debug_logs=config.log_level == "debug",
            log_format=config.log_format,
            kv_events=not config.no_kv_events,
            adapters=adapters,
        )
    )
    engine.build()
    return engine
