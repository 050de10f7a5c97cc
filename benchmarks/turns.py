"""The longest turns of a front door's loop while it serves long prompts.

What one turn takes, every other request waits. The prompts have nothing in common; the engine is
simulated, takes no time, and evicts blocks as its cache is full after a few of them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.processes import MODEL, Process, fleet
from benchmarks.suite.command import Ask, load_client
from benchmarks.suite.jobs import GRPC_UNARY, HTTP_UNARY, Job
from benchmarks.turns_front import FILE_VARIABLE

LIMIT_MS = 5.0
WORKER = ("--sim-speedup", "0", "--sim-context-length", "200000", "--sim-kv-blocks", "100000")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--words", type=int, nargs="+", default=[4000, 30_000, 131_000], help="of the prompts"
    )
    parser.add_argument("--requests", type=int, default=40, help="per length and API")
    parser.add_argument("--streams", type=int, default=1, help="requests at a time")
    parser.add_argument("--no-kv-events", action="store_true", help="as the front door's own flag")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    table = Table("prompt, words", "API", "longest turns, ms", f"above {LIMIT_MS:g} ms", "lost")
    flags = ["--no-kv-events"] if options.no_kv_events else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "turns")
        os.environ[FILE_VARIABLE] = str(file)
        for words in options.words:
            with (
                load_client() as ask,
                fleet(front=flags, worker=WORKER, front_module="benchmarks.turns_front") as (
                    front,
                    _,
                ),
            ):
                for kind in (GRPC_UNARY, HTTP_UNARY):
                    turns_ms, lost = _turns(ask, front, file, _job(front, kind, words, options))
                    longest = " ".join(f"{took_ms:.1f}" for took_ms in turns_ms[:3])
                    above = sum(took_ms > LIMIT_MS for took_ms in turns_ms)
                    table.add_row(str(words), kind, longest, str(above), str(lost))
    Console().print(table)
    return 0


def _job(front: Process, kind: str, words: int, options: argparse.Namespace) -> Job:
    return Job(
        name=kind,
        kind=kind,
        address=front.ready["grpc" if kind == GRPC_UNARY else "http"],
        pids={"front": front.pid},
        model=MODEL,
        streams=options.streams,
        requests=options.requests,
        prompt_words=words,
    )


def _turns(ask: Ask, front: Process, file: Path, job: Job) -> tuple[list[float], int]:
    """Return the long turns of a job in ms, the longest first, and the answers it lost."""
    began_s = time.monotonic()
    outcome = ask(job)
    lost = outcome.expected - outcome.tokens
    if errors := front.errors():
        raise SystemExit("\n".join(errors))
    turns = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    return sorted((took_ms for ended_s, took_ms in turns if ended_s > began_s), reverse=True), lost
