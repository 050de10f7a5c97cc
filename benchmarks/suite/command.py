"""The suite: CPU per token and request of the front door, beside bare servers in the same run.

The engine is simulated, all else is real: processes, sockets, tokenizer, text. The load client is
a process of its own. A ratio says what the front door costs beside a minimal grpc.aio server, or
a minimal ASGI application on uvicorn, that sends the same bytes at the same pace.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
from rich.console import Console

from benchmarks import router_speed
from benchmarks.processes import Process, another_front
from benchmarks.suite import cases
from benchmarks.suite.jobs import GRPC_STREAM, GRPC_UNARY, Case, Job, Outcome
from benchmarks.suite.peers import dynamo, vllm
from benchmarks.suite.report import Row, row, write
from benchmarks.suite.targets import Target, bare, penstock
from runtime.grpc_options import GRPCIO, NATIVE

Ask = Callable[[Job], Outcome]

SETTLE_S = 3.0
# 0.3 of this machine's memory for each of two engines; the cache's own size is in VLLM_CPU_*.
VLLM = ("--max-model-len", "1024", "--gpu-memory-utilization", "0.3")
console = Console(stderr=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--quick", action="store_true", help="fewer cases, once: under 2 minutes")
    parser.add_argument("--only", help="run the cases whose name contains this")
    parser.add_argument("--repeats", type=int, help="runs per case (3; with --quick 1)")
    parser.add_argument("--transport", choices=(NATIVE, GRPCIO), default=NATIVE)
    parser.add_argument(
        "--peer",
        choices=("dynamo", "vllm"),
        help="another server for the same load; vllm: its own server beside ours, both with the "
        "real engine and nothing else measured",
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, help="the interpreter that has the peer installed"
    )
    parser.add_argument("--out", type=Path, default=Path("bench"), help="for bench.json, bench.svg")


class _Run:
    """One run of the suite: its options, its load client and its rows."""

    def __init__(self, options: argparse.Namespace, ask: Ask) -> None:
        self._options = options
        self._ask = ask
        self._repeats = options.repeats or (1 if options.quick else 3)
        self.rows: list[Row] = []

    def selected(self, found: Iterator[Case]) -> list[Case]:
        """Return the cases that were asked for."""
        only = self._options.only
        return [it for it in found if not only or only in it.name]

    def cases(self, found: list[Case], *, speed: float, interval_s: float) -> None:
        """Run cases on servers of one pace."""
        if not found:
            return
        flags = ["--grpc-transport", self._options.transport]
        with ExitStack() as stack:
            ours, _ = stack.enter_context(penstock(flags, speedup=speed))
            targets = [ours, stack.enter_context(bare(interval_s))]
            if self._options.peer == "dynamo":
                peer = dynamo(self._options.peer_python, interval_s, found[0])
                targets.append(stack.enter_context(peer))
            for case in found:
                self._case(case, targets)

    def real_engine(self, found: list[Case]) -> None:
        """Run cases on our server and on vLLM's, each with an engine of its own."""
        flags = ["--grpc-transport", self._options.transport]
        with (
            penstock(flags, vllm=VLLM) as (ours, _),
            vllm(self._options.peer_python, VLLM) as theirs,
        ):
            for case in found:
                self._case(case, [ours, theirs])

    def _case(self, case: Case, targets: list[Target]) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {case.name}")
        outcomes: dict[str, list[Outcome]] = {}
        for _ in range(self._repeats):
            for target in targets:
                job = _job(case, target)
                if job is not None:
                    outcomes.setdefault(target.name, []).append(self._ask(job))
        self.rows.append(row(case, outcomes))


def _job(case: Case, target: Target) -> Job | None:
    over_grpc = case.kind in (GRPC_STREAM, GRPC_UNARY)
    address = target.grpc if over_grpc else target.http
    if address is None:
        return None
    pids = target.grpc_pids if over_grpc else target.http_pids
    return Job(address=address, pids=pids, **msgspec.structs.asdict(case), **target.asks)


@contextmanager
def load_client() -> Iterator[Ask]:
    """Run the load client; yields what has it do a job."""
    command = [sys.executable, "-m", "benchmarks.suite.client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        writer, reader = process.stdin, process.stdout

        def ask(job: Job) -> Outcome:
            writer.write(msgspec.json.encode(job) + b"\n")
            writer.flush()
            line = reader.readline()
            if not line:
                raise SystemExit("the load client ended; see above")
            return msgspec.json.decode(line, type=Outcome)

        try:
            yield ask
        finally:
            process.kill()


def _alone(front: Process, starts: int) -> dict[str, Any]:
    """Return the figures that need no load."""
    seconds, resident = [], []
    for _ in range(starts):
        with another_front(front) as another:
            seconds.append(another.start_s)
            time.sleep(SETTLE_S)
            resident.append(psutil.Process(another.pid).memory_info().rss / 2**20)
    decided = [router_speed.decision(tokens, 64, 200) for tokens in (1024, 8192)]
    return {
        "cold start of the front door, s": round(median(seconds), 2),
        "idle memory of the front door, MiB": round(median(resident), 1),
        **{
            f"routing decision, {it['tokens']} tokens, 64 places, µs": it["known"] for it in decided
        },
    }


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    quick = options.quick
    tokens = 100 if quick else 150
    requests = 400 if quick else 1500
    began = time.monotonic()
    with load_client() as ask:
        suite = _Run(options, ask)
        if options.peer == "vllm":
            suite.real_engine(suite.selected(cases.real_engine(tokens=tokens)))
        else:
            _simulated(suite, tokens, requests, quick=quick)
    alone = {}
    if not (options.only or options.peer == "vllm"):
        with penstock(speedup=0) as (_, front):
            alone = _alone(front, 1 if quick else 3)
    about = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - began),
    }
    write(suite.rows, alone, about, options.out)
    console.print(json.dumps(about))
    return 0


def _simulated(suite: _Run, tokens: int, requests: int, *, quick: bool) -> None:
    for streams in (64,) if quick else (1, 16, 64, 256):
        pace = cases.speedup(streams, tokens, cases.INTERVAL_S)
        found = suite.selected(cases.paced(streams, tokens=tokens))
        suite.cases(found, speed=pace, interval_s=cases.INTERVAL_S)
    pace = cases.speedup(256, tokens * 4, cases.SATURATED_INTERVAL_S)
    found = suite.selected(cases.saturated(tokens=tokens * 4))
    suite.cases(found, speed=pace, interval_s=cases.SATURATED_INTERVAL_S)
    found = suite.selected(cases.unary(requests=requests))
    found += suite.selected(cases.first_token(requests=requests // 10))
    suite.cases(found, speed=0, interval_s=0.001)
