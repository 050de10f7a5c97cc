"""Builds the vLLM engine: environment, arguments, processes. Synchronous, in the main thread.

Must run before gRPC is imported and before the event loop starts: on a CPU the engine process is
forked (4 to 6 s instead of the 25 to 60 s of a spawned one, which imports everything again), and a
fork takes neither threads nor gRPC's state along.
"""

import atexit
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import EngineFailed, InvalidConfig
from runtime.process import private_folder
from worker.vllm_child import guard_forked_children

CPU_KV_CACHE_BYTES = 512 * 1024**2
CPU_BLOCK_TOKENS = 32
CPU_MAX_SEQUENCES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """`model_path` is an HF folder; `arguments` are vLLM's own flags, as in `vllm serve`."""

    model_path: str
    arguments: tuple[str, ...] = ()
    debug_logs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedVllm:
    """An AsyncLLM that is loaded but has no event loop yet, and its VllmConfig."""

    llm: Any
    config: Any
    rpc_folder: Path


def build_vllm(settings: VllmSettings, stat_logger_class: Callable[[], type]) -> StartedVllm:
    """Load the model and start the engine's processes; blocks for seconds to minutes.

    `stat_logger_class` returns a subclass of vLLM's AggregateStatLoggerBase, which can be imported
    by then. Raises InvalidConfig for what the arguments or the model are to blame for,
    EngineFailed otherwise.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the engine must be built by the main thread, which outlives it")
    rpc_folder = _rpc_folder()
    _write_environment(
        {
            "VLLM_RPC_BASE_PATH": str(rpc_folder),
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        },
        {
            # Its warnings at start speak to those who tune kernels.
            "VLLM_LOGGING_LEVEL": "DEBUG" if settings.debug_logs else "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            # Half of the cores: two hyperthreads of one core only wait for each other, and more
            # threads than free cores stall each step (measured: 9 times slower on 2 cores).
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
        },
    )
    # vLLM's own use of what torch has deprecated; nobody who runs a worker can act on it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # One process less: the engine core runs the model itself.
        _write_environment({}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    config = _make_config(settings, on_cpu=on_cpu)
    if on_cpu:
        # create_engine_config has just set "spawn" here.
        _write_environment({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, {})
        if config.model_config.enforce_eager:
            _compile_nothing()
    guard_forked_children()
    # No local name for it: something in vLLM's imports keeps this frame, and `close` must be able
    # to free the engine.
    return StartedVllm(
        llm=_construct(config, stat_logger_class()), config=config, rpc_folder=rpc_folder
    )


def _compile_nothing() -> None:
    # The model is not compiled, but the sampler's rank count for log probabilities would be: 16 s
    # in the first process ever and 2 s in each later one, for microseconds per step.
    import torch

    torch._dynamo.config.disable = True


def _write_environment(values: Mapping[str, str], defaults: Mapping[str, str]) -> None:
    # vLLM has no other way in for these. `defaults` yield to what the user has set.
    environment = os.environ  # noqa: TID251 - written, and here only
    environment.update(values)
    for name, value in defaults.items():
        environment.setdefault(name, value)


def _rpc_folder() -> Path:
    # vLLM leaves its sockets behind when it is killed: each worker has a folder of its own.
    folder = private_folder("penstock-rpc")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _make_config(settings: VllmSettings, *, on_cpu: bool) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    # Quantities that fit a laptop, unless the user says otherwise.
    defaults: dict[str, Any] = {}
    if on_cpu:
        defaults = {
            "enforce_eager": True,
            "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            "max_model_len": -1,
            "max_num_seqs": CPU_MAX_SEQUENCES,
        }
    if settings.arguments:
        args = _parse(settings.arguments, defaults)
    else:
        args = AsyncEngineArgs(**defaults)
    _check_arguments(args, on_cpu=on_cpu)
    args.model = settings.model_path
    args.disable_log_stats = True
    args.enable_log_requests = False
    try:
        return args.create_engine_config()
    except Exception as error:
        raise InvalidConfig(f"vLLM refuses the model or its arguments: {_reason(error)}") from error


def _parse(arguments: tuple[str, ...], defaults: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise InvalidConfig(f"vLLM arguments: {message}", param="engine_args")

    parser = Parser(add_help=False, prog="penstock worker MODEL --")
    AsyncEngineArgs.add_cli_args(parser)
    parser.set_defaults(**defaults)
    return AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments)))


def _check_arguments(args: Any, *, on_cpu: bool) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    fixed = {
        "model": "the model is given before --",
        "served_model_name": "use --model-name",
        "skip_tokenizer_init": "the engine needs its tokenizer to check requests",
    }
    plain = AsyncEngineArgs()
    for name, why in fixed.items():
        if getattr(args, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            raise InvalidConfig(f"vLLM argument {flag} is not allowed: {why}", param="engine_args")
    if on_cpu and args.block_size is not None and args.block_size % 32:
        raise InvalidConfig("--block-size must be a multiple of 32 on a CPU", param="engine_args")
    if on_cpu and args.pipeline_parallel_size != 1:
        raise InvalidConfig(
            "--pipeline-parallel-size above 1 does not work on a CPU", param="engine_args"
        )


def _construct(config: Any, stat_logger: Any) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_vllm_config(
            config, stat_loggers=[stat_logger], disable_log_stats=True, enable_log_requests=False
        )
    except Exception as error:
        raise EngineFailed(f"vLLM could not start: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # pydantic wraps the one useful line in a heading and a link.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Value error, ")]
    text = told[0].removeprefix("Value error, ") if told else (lines or [""])[0]
    return text.partition(" [type=")[0] or type(error).__name__
