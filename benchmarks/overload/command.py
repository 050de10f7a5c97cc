"""More load than a worker can take: goodput, refusals and time to first token, with limits or none.

Open loop: requests arrive at random at 0.5, 1, 2 and 4 times the measured capacity, and clients
give up after a while. The engine is simulated and slow, so that this machine is not what is
measured. Printed last is what counts: the share of the best goodput that is left at 4 times the
capacity, and how much longer accepted requests then wait for their first token.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

import msgspec
import yaml

from benchmarks.overload.generator import OK, Fate, Plan
from benchmarks.processes import ROOT, Process, cpu_s, fleet
from runtime.errors import Overloaded

LOADS = (0.5, 1.0, 2.0, 4.0)
MAX_NUM_SEQS = 32
TOKENS = (12, 36)
PROMPT_WORDS = 50
# The simulator's step of 6.5 ms takes 80 ms: some 350 tokens/s, which leaves the machine idle.
SPEEDUP = 0.08


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--seconds", type=float, default=30.0, help="what is counted of each run")
    parser.add_argument(
        "--worker-concurrency", type=int, default=MAX_NUM_SEQS, help="the front door's option"
    )
    parser.add_argument("--queue-limit", type=int, help="the front door's option")
    parser.add_argument("--patience", type=float, default=10.0, help="clients' deadline in seconds")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and lengths")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print the report."""
    limits = ["--worker-concurrency", str(options.worker_concurrency)]
    if options.queue_limit is not None:
        limits += ["--queue-limit", str(options.queue_limit)]
    with _fleet(limits) as (door, _):
        capacity = _capacity(options, door)
        limited = [_under(options, door, load, capacity) for load in LOADS]
    with _fleet(["--worker-concurrency", "0"]) as (door, _):
        unlimited = [_under(options, door, load, capacity) for load in LOADS]
    report = {
        "worker_concurrency": options.worker_concurrency,
        "queue_limit": options.queue_limit,
        "patience_s": options.patience,
        "capacity_requests_per_s": round(capacity, 2),
        "with_limits": limited,
        "without_limits": unlimited,
        "with_limits_at_4x": ratios(limited),
        "without_limits_at_4x": ratios(unlimited),
    }
    print(json.dumps(report, indent=2) if options.json else yaml.safe_dump(report, sort_keys=False))
    return 0


def ratios(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What is left of the best goodput at the highest load, and TTFT there over that at 1."""
    best = max(run["goodput_requests_per_s"] for run in runs)
    at_one = next(run for run in runs if run["load"] == 1.0)
    return {
        "goodput_over_best": round(runs[-1]["goodput_requests_per_s"] / best, 3),
        "ttft_p99_over_1x": round(runs[-1]["ttft_p99_ms"] / at_one["ttft_p99_ms"], 2),
    }


def _fleet(limits: Sequence[str]) -> Any:
    worker = ("--sim-speedup", str(SPEEDUP), "--sim-max-num-seqs", str(MAX_NUM_SEQS))
    return fleet(front=["--no-http", *limits], worker=worker)


def _capacity(options: argparse.Namespace, door: Process) -> float:
    plan = _plan(options, door, clients=MAX_NUM_SEQS)
    return float(summary(_generate(plan), plan, load=0.0)["goodput_requests_per_s"])


def _under(
    options: argparse.Namespace, door: Process, load: float, capacity: float
) -> dict[str, Any]:
    plan = _plan(options, door, rate_per_s=load * capacity)
    before_s = cpu_s(door.pid)
    fates = _generate(plan)
    spent_s = cpu_s(door.pid) - before_s
    about = summary(fates, plan, load=load)
    about["front_door_cpu_ms_per_arrival"] = round(spent_s / len(fates) * 1000, 2)
    print(about, file=sys.stderr)
    return about


def _plan(options: argparse.Namespace, door: Process, **how: Any) -> Plan:
    return Plan(
        address=door.ready["grpc"],
        # Until clients give up for the first time queues fill: that is not counted.
        duration_s=options.patience + options.seconds,
        tokens=TOKENS,
        prompt_words=PROMPT_WORDS,
        patience_s=options.patience,
        seed=options.seed,
        **how,
    )


def _generate(plan: Plan) -> list[Fate]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.overload.generator"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=list[Fate])


def summary(fates: Sequence[Fate], plan: Plan, *, load: float) -> dict[str, Any]:
    """Figures of one run, its beginning left out.

    Who was accepted and gave up before the first token counts as one that waited until then.
    """
    begin_s = plan.patience_s
    window_s = plan.duration_s - begin_s
    arrived = [fate for fate in fates if fate.due_s >= begin_s]
    ended = [fate for fate in fates if begin_s <= fate.ended_s <= plan.duration_s]
    complete = [fate for fate in ended if fate.outcome == OK]
    outcomes = Counter(fate.outcome for fate in arrived)
    waited = [
        (fate.first_s or fate.ended_s) - fate.due_s
        for fate in arrived
        if fate.outcome != Overloaded.reason
    ]
    late = [fate.sent_s - fate.due_s for fate in arrived]
    return {
        "load": load,
        "arrivals_per_s": round(len(arrived) / window_s, 2),
        "goodput_requests_per_s": round(len(complete) / window_s, 2),
        "goodput_tokens_per_s": round(sum(fate.tokens for fate in complete) / window_s, 1),
        "outcomes": {name: round(n / len(arrived), 3) for name, n in outcomes.items()},
        "ttft_p50_ms": _percentile_ms(waited, 50),
        "ttft_p99_ms": _percentile_ms(waited, 99),
        "generator_late_p99_ms": _percentile_ms(late, 99),
    }


def _percentile_ms(values_s: Sequence[float], percent: int) -> float:
    return round(quantiles(values_s, n=100, method="inclusive")[percent - 1] * 1000, 1)
