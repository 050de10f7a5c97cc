"""CPU of the HTTP gateway alone per request and per streamed event, beside bare servers'.

All three run on uvicorn, parse the same bodies and have no engine behind them; the ratio to the
bare ASGI application is what the gateway's own work adds.
"""

import argparse
import asyncio
import json
from typing import Any

import httpx2
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.http_yardstick import KINDS, MODEL, PATH
from benchmarks.processes import cpu_s
from benchmarks.suite.targets import bare_process

INTERVAL_S = 0.02
CONNECTIONS = 8
TURN = {"role": "user", "content": "What is the capital of France? " * 2}
SMALL = {"model": MODEL, "messages": [TURN] * 8, "max_tokens": 1}
LARGE = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 6500}], "max_tokens": 1}


async def _whole(url: str, body: bytes, count: int) -> int:
    """Ask `count` times, a few at a time; returns how many answers came."""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:

        async def some() -> None:
            for _ in range(count // CONNECTIONS):
                answer = await http.post(PATH, content=body)
                answer.raise_for_status()

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(some())
    return count // CONNECTIONS * CONNECTIONS


async def _streams(url: str, body: bytes, count: int) -> int:
    """Ask for `count` streams at once; returns how many events came."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as http:

        async def one() -> int:
            async with http.stream("POST", PATH, content=body) as answer:
                answer.raise_for_status()
                return sum([part.count(b"data: {") async for part in answer.aiter_raw()])

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(count)]
    return sum(task.result() for task in tasks)


def _measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Microseconds of CPU per case."""
    streamed = SMALL | {"stream": True, "max_tokens": options.tokens}
    cases: list[tuple[str, Any, Any, int]] = [
        ("request", _whole, SMALL, options.requests),
        ("request_32k", _whole, LARGE, options.requests),
        *((f"event_c{it}", _streams, streamed, it) for it in options.streams),
    ]
    found = {}
    with bare_process("benchmarks.http_yardstick", kind, str(INTERVAL_S)) as (pid, url):
        uvloop.run(_whole(url, json.dumps(SMALL).encode(), 200))
        for name, load, body, count in cases:
            before = cpu_s(pid)
            answers = uvloop.run(load(url, json.dumps(body).encode(), count))
            found[name] = (cpu_s(pid) - before) / answers * 1e6
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--requests", type=int, default=4000, help="requests that are not streamed")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], help="at a time")
    parser.add_argument("--tokens", type=int, default=200, help="events per stream, 50 a second")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    console = Console(stderr=True)
    found = {kind: _measure(kind, options) for kind in track(KINDS, "measuring", console=console)}
    if options.json:
        print(json.dumps({kind: _rounded(it) for kind, it in found.items()}, indent=2))
        return 0
    table = Table("µs of CPU per", *KINDS, "gateway over raw")
    for case, bare in found["raw"].items():
        ours = found["gateway"][case]
        table.add_row(case, *(f"{it[case]:.1f}" for it in found.values()), f"{ours / bare:.2f}")
    Console().print(table)
    return 0


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {case: round(us, 2) for case, us in figures.items()}
