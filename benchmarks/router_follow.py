"""How fast a router that starts learns what workers hold, and what following them costs.

Real gRPC on loopback. A child process holds the logs of KV events and serves them as a worker does;
here is the front door's follower of each, which fills a router's index. A restart is a snapshot of
all blocks. Live events are of one block each, 64 a batch, as the steps of a busy engine make them;
what counts of them is this process's CPU.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import numpy as np
import uvloop
import yaml

from benchmarks.processes import ROOT
from router.kv import KvRouter
from router.router import WorkerJoined
from router.settings import RouterSettings
from runtime.grpc_client import RpcChannel
from server.follower import WorkerFollower
from transport.choice import make_server
from wire.cards import ModelCard, WorkerInstance
from wire.pool import POOL, rpc_types
from worker.engine import EngineLoad
from worker.fleet_service import FleetService
from worker.kv_log import KvLog
from worker.listeners import Listeners

_BLOCK = 16
_BATCH = 64
_LIMIT_S = 120.0
_LOOK_S = 0.002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--blocks", type=int, default=1_000_000, help="blocks of all workers")
    parser.add_argument("--workers", type=int, default=4, help="workers that hold them")
    parser.add_argument("--live", type=int, default=200_000, help="blocks stored while following")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    if options.serve:
        uvloop.run(_serve(options))
        return 0
    report = uvloop.run(_measure(options))
    if options.json == "-":
        print(json.dumps(report))
    else:
        print(yaml.safe_dump(report, sort_keys=False), end="")
    return 0


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    router = KvRouter(RouterSettings(block_size=_BLOCK, max_blocks_per_worker=2**24))
    with _child(options) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        addresses = json.loads(child.stdout.readline())
        async with (
            asyncio.timeout(_LIMIT_S),
            AsyncExitStack() as resources,
            asyncio.TaskGroup() as tasks,
        ):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            following = []
            for at, address in enumerate(addresses):
                channel = RpcChannel(address, rpc_types=rpc_types)
                resources.push_async_callback(channel.close)
                follower = _follower(f"worker-{at}", address, router)
                following.append(tasks.create_task(follower.run(channel)))
            await _until_known(router, options.blocks)
            restore_s, restore_cpu_s = (
                time.perf_counter() - began_s, time.process_time() - began_cpu_s,
            )  # fmt: skip
            began_cpu_s = time.process_time()
            child.stdin.write(b"go\n")
            child.stdin.flush()
            await _until_known(router, options.blocks + options.live)
            live_cpu_s = time.process_time() - began_cpu_s
            for task in following:
                task.cancel()
    return {
        "workers": options.workers,
        "blocks": options.blocks,
        "restore_s": round(restore_s, 2),
        "restore_cpu_s": round(restore_cpu_s, 2),
        "live_blocks_per_cpu_s": round(options.live / live_cpu_s),
    }


@contextmanager
def _child(options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks", "router-follow", "--serve"]
    command += [f"--{name}={getattr(options, name)}" for name in ("blocks", "workers", "live")]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _follower(worker_id: str, address: str, router: KvRouter) -> WorkerFollower:
    card = ModelCard(name="m", path="", context_length=1, vocab_size=1, block_size=_BLOCK)
    instance = WorkerInstance(instance_id=worker_id, address=address, card=card, engine="none")
    router.observe(WorkerJoined(worker_id, block_size=_BLOCK))
    return WorkerFollower(instance, router, kv_events=True, retry_max_s=0.1, now=time.monotonic)


async def _until_known(router: KvRouter, blocks: int) -> None:
    while sum(router.stats().blocks.values()) < blocks:  # noqa: ASYNC110 - bounded by the caller
        await asyncio.sleep(_LOOK_S)


class _Engine:
    """As much of an engine as the fleet service looks at."""

    def __init__(self, log: KvLog) -> None:
        self.kv_logs = (log,)
        self.load_changed = Listeners()

    def load(self) -> EngineLoad:
        return EngineLoad()

    def loads(self) -> tuple[EngineLoad]:
        return (EngineLoad(),)


async def _serve(options: argparse.Namespace) -> None:
    """Serve the logs, say where, and make the live events when told to."""
    rng = np.random.default_rng(1)
    # Long enough that no live event is given up for a snapshot.
    kept = options.live + options.blocks
    logs = [KvLog(max_events=kept, max_blocks=kept) for _ in range(options.workers)]
    servers = []
    for log in logs:
        log.store(rng.integers(0, 2**64, options.blocks // options.workers, np.uint64).tolist())
        log.commit(0.0)
        engine: Any = _Engine(log)
        server = make_server(
            services=[FleetService(engine).service],
            rpc_types=rpc_types,
            pool=POOL,
            host="127.0.0.1",
            port=0,
        )
        servers.append(server)
    print(json.dumps([await server.start() for server in servers]), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for start in range(0, options.live, _BATCH):
        for block in rng.integers(0, 2**64, min(_BATCH, options.live - start), np.uint64).tolist():
            logs[0].store([block])
        logs[0].commit(0.0)
        await asyncio.sleep(0)
    await asyncio.Event().wait()
