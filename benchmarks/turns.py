"""The longest turns of a front door's loop while it serves long prompts.

What one turn takes, every other request waits. The prompts have nothing in common; the engine is
simulated, takes no time, and evicts blocks as its cache is full after a few of them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.processes import MODEL, Process, fleet
from benchmarks.suite.command import Ask, load_client
from benchmarks.suite.jobs import GRPC_UNARY, HTTP_UNARY, Job
from benchmarks.turns_front import FILE_VARIABLE

LIMIT_MS = 5.0
COLUMNS = ("longest turns, ms of CPU", f"above {LIMIT_MS:g} ms", "by the clock, ms")
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
    table = Table("prompt, words", "API", *COLUMNS, "lost")
    flags = ["--no-kv-events"] if options.no_kv_events else []
    with turns_file() as file:
        for words in options.words:
            with (
                load_client() as ask,
                fleet(front=flags, worker=WORKER, front_module="benchmarks.turns_front") as (
                    front,
                    _,
                ),
            ):
                for kind in (GRPC_UNARY, HTTP_UNARY):
                    began_s = time.monotonic()
                    lost = _lost(ask, front, _job(front, kind, words, options))
                    table.add_row(str(words), kind, *columns(file, began_s), str(lost))
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


@contextmanager
def turns_file() -> Iterator[Path]:
    """Have processes that run `turns_front` write to a file, as long as this lasts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "turns")
        os.environ[FILE_VARIABLE] = str(file)
        yield file


def columns(file: Path, began_s: float) -> tuple[str, str, str]:
    """Return what COLUMNS name, of the turns that ended since `began_s`."""
    turns = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    since = [it for it in turns if it[0] > began_s]
    cpu_ms, took_ms = ([it[column] for it in since] for column in (1, 2))
    return _longest(cpu_ms), str(sum(it > LIMIT_MS for it in cpu_ms)), _longest(took_ms)


def _longest(turns_ms: list[float]) -> str:
    return " ".join(f"{it:.1f}" for it in sorted(turns_ms, reverse=True)[:3])


def _lost(ask: Ask, front: Process, job: Job) -> int:
    """Run a job; return how many answers it lost."""
    outcome = ask(job)
    if errors := front.errors():
        raise SystemExit("\n".join(errors))
    return outcome.expected - outcome.tokens
