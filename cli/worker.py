"""`penstock worker`: one engine. Imports no gRPC: vLLM's engine process is forked before that."""

from collections.abc import Sequence

from runtime.config import parse_config
from runtime.logs import configure_logging


def worker(argv: Sequence[str]) -> int:
    """Run a worker until it is stopped; returns the exit code."""
    from worker.config import WorkerConfig

    config, engine_arguments = parse_config(
        WorkerConfig,
        argv,
        prog="penstock worker",
        description="One model's engine behind KServe. vLLM's own arguments stand behind --.",
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    from worker.main import run_worker

    return run_worker(config, engine_arguments)
