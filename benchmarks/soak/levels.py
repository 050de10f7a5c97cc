"""What processes hold: measured from outside, compared with what it was, fitted over time."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import Process, cpu_s

SETTLE_LIMIT_S = 30.0
SETTLE_LOOK_S = 0.5
MIB = 1024 * 1024
# Pools start a thread when they first need it, which may be during the load.
SPARE = {"threads": 2}

# Requests and rpcs in every process that has them.
GAUGES = (
    "penstock_requests_in_flight",
    "penstock_requests_queued",
    "penstock_grpc_calls_in_flight",
    "penstock_http_requests_in_flight",
    "penstock_worker_requests_in_flight",
    "penstock_worker_requests_running",
    "penstock_worker_requests_waiting",
    "penstock_worker_kv_cache_usage_ratio",
    "penstock_event_loop_tasks",
)
Levels = Mapping[str, float]
COUNTED = frozenset(name.removeprefix("penstock_") for name in GAUGES)
"""The levels that are counted by the processes themselves."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at one process. `levels` must be back where they were once nothing runs."""

    at_s: float
    rss_mib: float
    cpu_s: float
    levels: Levels


async def look(client: httpx2.AsyncClient, process: Process) -> Sample:
    """Measure one process."""
    system = psutil.Process(process.pid)
    levels = {"threads": float(system.num_threads()), "descriptors": float(system.num_fds())}
    page = await client.get(f"{process.ready['metrics']}/metrics")
    for family in text_string_to_metric_families(page.text):
        if family.name in GAUGES:
            counted = sum(sample.value for sample in family.samples)
            levels[family.name.removeprefix("penstock_")] = counted
    return Sample(
        at_s=time.monotonic(),
        rss_mib=system.memory_info().rss / MIB,
        cpu_s=cpu_s(process.pid),
        levels=levels,
    )


async def look_at_all(client: httpx2.AsyncClient, fleet: Sequence[Process]) -> dict[str, Sample]:
    """Measure every process."""
    return {process.name: await look(client, process) for process in fleet}


def not_back(
    before: Mapping[str, Sample],
    after: Mapping[str, Sample],
    levels: Collection[str] | None = None,
) -> list[str]:
    """Say of each level (of `levels`, by default of all) what it is if it is not what it was."""
    return [
        f"{name}: {level} is {after[name].levels.get(level, 0):g}, was {value:g} before the load"
        for name, sample in before.items()
        for level, value in sample.levels.items()
        if (levels is None or level in levels) and _is_off(level, value, after[name])
    ]


def _is_off(level: str, value: float, after: Sample) -> bool:
    """Handles may be fewer than before; what a process counts itself must be the same."""
    now = after.levels.get(level, 0)
    return now != value if level in COUNTED else now > value + SPARE.get(level, 0)


async def settle(
    client: httpx2.AsyncClient,
    fleet: Sequence[Process],
    before: Mapping[str, Sample],
    levels: Collection[str] | None = None,
) -> dict[str, Sample]:
    """Look until every level is back, or the limit is over; returns the last look."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        after = await look_at_all(client, fleet)
        if not not_back(before, after, levels) or time.monotonic() > deadline:
            return after
        await asyncio.sleep(SETTLE_LOOK_S)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A straight line through resident memory in the second half of the load."""

    samples: int
    mib_per_hour: float
    r_squared: float
    mib: float


def growth(samples: Sequence[Sample]) -> Growth | None:
    """Fit the second half; None for fewer than four samples in it."""
    half = samples[len(samples) // 2 :]
    if len(half) < 4:
        return None
    at = [sample.at_s for sample in half]
    rss = [sample.rss_mib for sample in half]
    slope = linear_regression(at, rss).slope
    steady = len(set(rss)) == 1
    return Growth(
        samples=len(half),
        mib_per_hour=round(slope * 3600, 1),
        r_squared=0.0 if steady else round(correlation(at, rss) ** 2, 2),
        mib=round(slope * (at[-1] - at[0]), 2),
    )
