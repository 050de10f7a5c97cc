"""Mixed load against a front door and two workers: does everything return to its level?

Good and bad requests over both fronts; clients that cancel, leave, reset, read slowly or wait too
short; bursts beyond the queue. Every request must end exactly once. Exits with 1, and says why,
when one did not, or when requests, tasks, threads, descriptors or memory did not return.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import httpx2
import uvloop
import yaml

from benchmarks.processes import Process, fleet
from benchmarks.soak import kserve_visits, network_visits, openai_visits
from benchmarks.soak.kserve_visits import BURST
from benchmarks.soak.ledger import Ledger, Site
from benchmarks.soak.levels import (
    COUNTED,
    Growth,
    Sample,
    growth,
    look_at_all,
    not_back,
    settle,
)
from runtime.grpc_client import RpcChannel
from wire.pool import rpc_types

KINDS = (*kserve_visits.KINDS, *openai_visits.KINDS, *network_visits.KINDS)
# Small, so that bursts are beyond them and the KV cache is full early.
FRONT = ("--worker-concurrency", "16", "--queue-limit", "32", "--router-policy", "round-robin")
WORKER = (
    *("--sim-speedup", "2", "--sim-max-num-seqs", "16", "--sim-mean-answer-tokens", "80"),
    *("--sim-context-length", "2048", "--sim-kv-blocks", "512"),
)
MAX_THINKING_S = 0.4
MAX_ERRORS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What to do. `clients` make one visit after the other; times in seconds."""

    duration_s: float = 600.0
    clients: int = 24
    seed: int = 1
    burst_every_s: float = 20.0
    look_every_s: float = 30.0
    growth_limit_mib: float = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the load")
    parser.add_argument("--clients", type=int, default=24, help="visits at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of visits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run it, print the report; 0 when everything is as it must be."""
    duration_s = options.minutes * 60
    soak = Soak(
        duration_s=duration_s,
        clients=options.clients,
        seed=options.seed,
        look_every_s=min(30.0, duration_s / 12),
    )
    report = soak_processes(soak, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(yaml.safe_dump(report, sort_keys=False, width=100))
    return 1 if report["failures"] else 0


def soak_processes(soak: Soak, tell: Callable[[str], None]) -> dict[str, Any]:
    """Start the processes, soak them, stop them; returns the report."""
    with fleet(front=FRONT, worker=WORKER, workers=2) as processes:
        return uvloop.run(_soak(soak, processes, tell))


async def _soak(
    soak: Soak, processes: list[Process], tell: Callable[[str], None]
) -> dict[str, Any]:
    ledger = Ledger()
    looks: list[dict[str, Sample]] = []
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as watching:
        first = await look_at_all(watching, processes)
        # Each kind once: threads, caches and label sets that are made at first use are no leak.
        async with _site(processes) as site, asyncio.TaskGroup() as group:
            for kind in (*KINDS, BURST):
                group.create_task(ledger.play(kind, site, Random(soak.seed)))
        before = await settle(watching, processes, first, COUNTED)
        async with asyncio.TaskGroup() as group:
            watch = _watch(soak, watching, processes, looks, ledger, tell)
            watcher = group.create_task(watch)
            await _load(soak, processes, ledger)
            watcher.cancel()
        after = await settle(watching, processes, before)
    errors = [f"{one.name} logged: {text}" for one in processes for text in one.errors()]
    failures = [*ledger.faults, *errors[:MAX_ERRORS_SHOWN], *not_back(before, after)]
    return _report(soak, ledger, before, looks, after, failures)


@asynccontextmanager
async def _site(processes: Sequence[Process]) -> AsyncIterator[Site]:
    ready = processes[0].ready
    channels = [RpcChannel(ready["grpc"], rpc_types=rpc_types, keepalive_s=None) for _ in range(4)]
    try:
        async with httpx2.AsyncClient(
            base_url=ready["http"], trust_env=False, timeout=None, limits=httpx2.Limits()
        ) as client:
            yield Site(grpc=ready["grpc"], http=ready["http"], channels=channels, client=client)
    finally:
        for channel in channels:
            await channel.close()
        # gRPC closes a connection when its last call is freed, and calls are parts of cycles.
        gc.collect()


async def _load(soak: Soak, processes: Sequence[Process], ledger: Ledger) -> None:
    end_s = time.monotonic() + soak.duration_s
    async with _site(processes) as site, asyncio.TaskGroup() as group:
        for number in range(soak.clients):
            rng = Random(f"{soak.seed}/{number}")
            group.create_task(_visit(end_s, site, rng, ledger))
        group.create_task(_burst(end_s, soak, site, ledger))


async def _visit(end_s: float, site: Site, rng: Random, ledger: Ledger) -> None:
    weights = [kind.weight for kind in KINDS]
    while time.monotonic() < end_s:
        (kind,) = rng.choices(KINDS, weights)
        await ledger.play(kind, site, rng)
        await asyncio.sleep(rng.uniform(0.0, MAX_THINKING_S))


async def _burst(end_s: float, soak: Soak, site: Site, ledger: Ledger) -> None:
    rng = Random(soak.seed)
    while time.monotonic() + soak.burst_every_s < end_s:
        await asyncio.sleep(soak.burst_every_s)
        await ledger.play(BURST, site, rng)


async def _watch(
    soak: Soak,
    client: httpx2.AsyncClient,
    processes: Sequence[Process],
    looks: list[dict[str, Sample]],
    ledger: Ledger,
    tell: Callable[[str], None],
) -> None:
    began_s = time.monotonic()
    while True:
        await asyncio.sleep(soak.look_every_s)
        look = await look_at_all(client, processes)
        looks.append(look)
        sizes = ", ".join(f"{name} {sample.rss_mib:.0f} MiB" for name, sample in look.items())
        tell(
            f"{time.monotonic() - began_s:4.0f} s: {ledger.requests} requests, "
            f"{len(ledger.faults)} faults; {sizes}"
        )


def _report(
    soak: Soak,
    ledger: Ledger,
    before: dict[str, Sample],
    looks: list[dict[str, Sample]],
    after: dict[str, Sample],
    failures: list[str],
) -> dict[str, Any]:
    fits = {name: growth([look[name] for look in looks]) for name in before}
    grown = [
        f"{name}: memory grew by {fit.mib} MiB in the second half ({fit.mib_per_hour} MiB/h)"
        for name, fit in fits.items()
        if fit is not None and fit.mib > soak.growth_limit_mib
    ]
    totals: Counter[str] = sum(ledger.outcomes.values(), Counter())
    return {
        "soak": asdict(soak),
        "requests": ledger.requests,
        "outcomes": dict(totals.most_common()),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(ledger.outcomes.items())},
        "processes": {name: _about(before[name], after[name], fits[name]) for name in before},
        "failures": [*failures, *grown],
    }


def _about(before: Sample, after: Sample, fit: Growth | None) -> dict[str, Any]:
    return {
        "cpu_s": round(after.cpu_s - before.cpu_s, 1),
        "rss_mib": {"before": round(before.rss_mib, 1), "after": round(after.rss_mib, 1)},
        "second_half": None if fit is None else asdict(fit),
        "levels": {
            name: {"before": round(value, 4), "after": round(after.levels.get(name, 0), 4)}
            for name, value in before.levels.items()
        },
    }
