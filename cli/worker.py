"""`penstock worker`: one engine. Imports no gRPC: vLLM's engine process is forked before that."""

from collections.abc import Sequence
from pathlib import Path

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
        examples=(
            "penstock worker smollm2",
            "penstock worker org/model --model-name chat -- --max-model-len 4096",
            "penstock worker smollm2 --engine sim --grpc-port 0 --metrics-port 0",
        ),
        rest_for="vLLM",
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    from server.text.codec import check_answer_format
    from worker.main import run_worker

    def check_model(folder: Path) -> None:
        check_answer_format(folder, config.tool_call_parser, config.reasoning_parser)

    return run_worker(config, engine_arguments, check_model=check_model)
