"""Time to first token and cache hits under kv, round-robin and random routing.

Open loop over real processes: a front door and four simulated workers with the timing of an 8B
model on an H100 and room for 131,072 tokens each. With --real instead two vLLM workers on this
machine and a few short conversations. Every policy gets the same requests at the same times, and
a fleet of its own.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, quantiles
from typing import Any

import uvloop
import yaml

from benchmarks.processes import fleet
from benchmarks.routing.replay import Turn, replay
from benchmarks.routing.workloads import Workload, multi_turn, no_shared_prefix, shared_prefix

POLICIES = ("round-robin", "random", "kv")
SIM = ("--sim-kv-blocks", "4096", "--sim-block-size", "32")
# Little to compute and eager: what two cores can do for two engines at once.
VLLM = ("--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--quick", action="store_true", help="shorter runs: under three minutes")
    parser.add_argument("--real", action="store_true", help="two vLLM workers, no simulation")
    parser.add_argument("--workers", type=int, default=4, help="simulated workers")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="what to compare")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and prompts")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")


def run(options: argparse.Namespace) -> int:
    """Measure, compare, print."""
    results: dict[str, dict[str, list[Turn]]] = {}
    for policy in options.policies:
        for name, turns in _measure(options, policy).items():
            results.setdefault(name, {})[policy] = turns
    report = {name: compare(by_policy) for name, by_policy in results.items()}
    if options.json == "-":
        print(json.dumps(report))
        return 0
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    print(yaml.safe_dump(report, sort_keys=False), end="")
    return 0


def _measure(options: argparse.Namespace, policy: str) -> dict[str, list[Turn]]:
    front = ["--no-http", "--router-policy", policy]
    how: dict[str, Any] = {"worker": SIM, "workers": options.workers}
    if options.real:
        how = {"vllm": VLLM, "workers": 2}
    measured: dict[str, list[Turn]] = {}
    with fleet(front=front, **how) as (door, *_):
        for workload in _workloads(options):
            measured[workload.name] = uvloop.run(replay(door.ready["grpc"], workload))
            about = summary(measured[workload.name])
            print(f"{policy:12} {workload.name:17} {about}", file=sys.stderr, flush=True)
    return measured


def _workloads(options: argparse.Namespace) -> list[Workload]:
    rng = Random(options.seed)
    if options.real:
        return [multi_turn(20, rng, rate=0.2, first=256, added=32, answer=16, turns=5)]
    return [
        multi_turn(12 if options.quick else 60, rng),
        # In a short run most of 128 beginnings would come once.
        shared_prefix(14 if options.quick else 60, rng, prefixes=40 if options.quick else 128),
        no_shared_prefix(10 if options.quick else 40, rng),
    ]


def compare(by_policy: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    """Every policy's figures, and kv's mean time to first token against the others'."""
    report: dict[str, Any] = {name: summary(turns) for name, turns in by_policy.items()}
    if "kv" in by_policy:
        mean_ms = report["kv"]["ttft_mean_ms"]
        for other in by_policy.keys() & {"round-robin", "random"}:
            ratio = mean_ms / report[other]["ttft_mean_ms"]
            key = other.replace("-", "_")
            report[f"ttft_ratio_vs_{key}"] = round(ratio, 3)
            report[f"ttft_gain_vs_{key}"] = round(1 - ratio, 3)
    return report


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Figures of one run."""
    first_ms = [turn.first_token_s * 1000 for turn in turns]
    cuts = quantiles(first_ms, n=100, method="inclusive")
    return {
        "requests": len(turns),
        "ttft_mean_ms": round(fmean(first_ms), 1),
        "ttft_p50_ms": round(cuts[49], 1),
        "ttft_p99_ms": round(cuts[98], 1),
        "hit_rate": round(
            sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns), 3
        ),
    }
