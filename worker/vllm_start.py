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

from runtime.errors import InvalidConfig
from runtime.process import private_folder
from worker.adapters import Adapter
from worker.vllm_adapters import check_lora_arguments, engine_adapters, lora_defaults
from worker.vllm_child import guard_forked_children
from worker.vllm_failure import failed_start, refused
from worker.vllm_kv_events import private_events_config
from worker.vllm_logs import QUIET, StartCauses, adopt_loggers, configure_vllm_logs

CPU_KV_CACHE_BYTES = 512 * 1024**2
CPU_BLOCK_TOKENS = 32
CPU_MAX_SEQUENCES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """`model_path` is an HF folder; `arguments` are vLLM's own flags, as in `vllm serve`.

    `kv_events` is whether vLLM tells us what its prefix cache holds; what its own flags say of
    its events holds for others too. Requests may ask for the `adapters`.
    """

    model_path: str
    arguments: tuple[str, ...] = ()
    debug_logs: bool = False
    log_format: str = "text"
    kv_events: bool = True
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedVllm:
    """An AsyncLLM that is loaded but has no event loop yet, and its VllmConfig.

    It has room for the `adapters`, which are not loaded yet.
    """

    llm: Any
    config: Any
    rpc_folder: Path
    adapters: tuple[Adapter, ...] = ()


def build_vllm(settings: VllmSettings, stat_logger_class: Callable[[], type]) -> StartedVllm:
    """Load the model and start the engine's processes; blocks for seconds to minutes.

    `stat_logger_class` returns a subclass of vLLM's AggregateStatLoggerBase, which can be imported
    by then. Raises InvalidConfig for what the arguments or the model are to blame for,
    EngineFailed otherwise.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the engine must be built by the main thread, which outlives it")
    rpc_folder = _rpc_folder()
    causes = StartCauses(rpc_folder)
    try:
        _prepare_process(settings, rpc_folder, causes)
        config, adapters = _configure(settings, causes, rpc_folder)
        guard_forked_children()
        # No local name for it: something in vLLM's imports keeps this frame, and `close` must be
        # able to free the engine.
        return StartedVllm(
            llm=_construct(config, stat_logger_class(), causes),
            config=config,
            rpc_folder=rpc_folder,
            adapters=adapters,
        )
    finally:
        causes.close()


def _prepare_process(settings: VllmSettings, rpc_folder: Path, causes: StartCauses) -> None:
    """Set what vLLM reads from its process, before it is imported."""
    _write_environment(
        {"VLLM_RPC_BASE_PATH": str(rpc_folder), "VLLM_CONFIGURE_LOGGING": "1"},
        {
            "VLLM_LOGGING_LEVEL": "DEBUG" if settings.debug_logs else QUIET,
            # torch's C++ side, which knows nothing of Python's logging.
            "TORCH_CPP_LOG_LEVEL": "INFO" if settings.debug_logs else QUIET,
            "VLLM_NO_USAGE_STATS": "1",
            # Half of the cores: two hyperthreads of one core only wait for each other, and more
            # threads than free cores stall each step (measured: 9 times slower on 2 cores).
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
        },
    )
    logging_file = configure_vllm_logs(
        rpc_folder,
        causes,
        log_format=settings.log_format,
        level=os.environ["VLLM_LOGGING_LEVEL"].upper(),  # noqa: TID251 - the user's, or ours above
    )
    _write_environment({}, {"VLLM_LOGGING_CONFIG_PATH": str(logging_file)})
    # vLLM's own use of what torch has deprecated; nobody who runs a worker can act on it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def _configure(
    settings: VllmSettings, causes: StartCauses, rpc_folder: Path
) -> tuple[Any, tuple[Adapter, ...]]:
    """Return the VllmConfig and its adapters, with this process set up for it."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # One process less: the engine core runs the model itself.
        _write_environment({}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    adapters = engine_adapters(settings.adapters, rpc_folder, on_cpu=on_cpu)
    config = _make_config(settings, causes, rpc_folder, adapters, on_cpu=on_cpu)
    if on_cpu:
        # create_engine_config has just set "spawn" here.
        _write_environment({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, {})
        if config.model_config.enforce_eager:
            _compile_nothing()
    adopt_loggers()
    return config, adapters


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


def _make_config(
    settings: VllmSettings,
    causes: StartCauses,
    rpc_folder: Path,
    adapters: tuple[Adapter, ...],
    *,
    on_cpu: bool,
) -> Any:
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
    defaults |= lora_defaults(adapters)
    if settings.arguments:
        args = _parse(settings.arguments, defaults)
    else:
        args = AsyncEngineArgs(**defaults)
    _check_arguments(args, on_cpu=on_cpu)
    check_lora_arguments(args, adapters)
    args.model = settings.model_path
    args.disable_log_stats = True
    args.enable_log_requests = False
    # A bar of progress is no line of a log.
    args.use_tqdm_on_load = False
    no_cache = args.enable_prefix_caching is False
    if settings.kv_events and args.kv_events_config is None and not no_cache:
        args.kv_events_config = private_events_config(rpc_folder)
    try:
        config = args.create_engine_config()
        if on_cpu and config.model_config.runner_type == "pooling" and args.dtype == "auto":
            # Small models, whose vectors are compared: half precision costs four digits.
            args.dtype = "float32"
            config = args.create_engine_config()
    except Exception as error:
        raise refused(error, causes.first()) from error
    return config


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


def _construct(config: Any, stat_logger: type, causes: StartCauses) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_vllm_config(
            config, stat_loggers=[stat_logger], disable_log_stats=True, enable_log_requests=False
        )
    except Exception as error:
        raise failed_start(error, causes.first()) from error
