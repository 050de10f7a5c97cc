"""What a decision of the KV-aware router takes, and what its index takes in and holds.

In this process, without I/O. A decision is timed with its hashing, on prompts of array("i") and
blocks of 16 tokens: a third of the places hold the first 16 blocks (a system prompt), one nine
tenths of the prompt and another six tenths (a conversation that moved), four requests with the same
beginning run on the first of them, and every engine has reported its load.
"""

import argparse
import json
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from statistics import median
from typing import Any

import numpy as np

from router.kv import KvRouter
from router.prefix_index import PrefixIndex
from router.router import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Choice,
    LoadReported,
    Place,
    RouteRequest,
    RouterEvent,
    WorkerJoined,
)
from router.settings import RouterSettings
from wire.block_hash import Hashes, prefix_hashes
from wire.kv_events import snapshot_parts

_BLOCK = 16
_TOKENS = (1024, 8192, 131_072)
_PLACES = (8, 64, 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repeats", type=int, default=300, help="decisions timed per figure")
    parser.add_argument("--blocks", type=int, default=1_000_000, help="blocks in the index")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is stdout")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    report = {
        "decision_us": [
            decision(tokens, places, options.repeats) for tokens in _TOKENS for places in _PLACES
        ],
        "index": index_figures(options.blocks),
    }
    if options.json == "-":
        print(json.dumps(report))
        return 0
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)
    _print(report)
    return 0


def decision(tokens: int, places: int, repeats: int) -> dict[str, Any]:
    """Return median times of one decision in µs, for a prompt that is known and one that is not."""
    rng = np.random.default_rng(1)
    router = router_of(places)
    prompt = _prompt(rng, tokens)
    blocks = prefix_hashes(prompt, _BLOCK)
    for number in range(0, places, 3):
        router.observe(BlocksStored(_place(number), blocks[:16]))
    warm, lukewarm = _place(places // 2), _place(places // 2 + 1)
    router.observe(BlocksStored(warm, blocks[: len(blocks) * 9 // 10]))
    router.observe(BlocksStored(lukewarm, blocks[: len(blocks) * 6 // 10]))
    for number in range(4):
        half = RouteRequest(request_id=str(number), token_ids=prompt[: tokens // 2])
        overlap = len(blocks) // 2
        choice = Choice(
            worker_id=warm.worker_id, hashes=blocks[:overlap], overlap_blocks=overlap - 1
        )
        router.started(half, choice, 0.0)
    known = RouteRequest(request_id="known", token_ids=prompt)
    strange = RouteRequest(request_id="strange", token_ids=_prompt(rng, tokens))
    return {
        "tokens": tokens,
        "places": places,
        "known": round(_median_us(lambda: router.choose(known, 0.0), repeats), 1),
        "unknown": round(_median_us(lambda: router.choose(strange, 0.0), repeats), 1),
        "hashing": round(_median_us(lambda: prefix_hashes(prompt, _BLOCK), repeats), 1),
    }


def router_of(places: int) -> KvRouter:
    """Return a router of loaded places that hold nothing."""
    router, rng = KvRouter(RouterSettings(policy="kv", block_size=_BLOCK, seed=1)), Random(1)
    for number in range(places):
        name = _place(number).worker_id
        router.observe(WorkerJoined(name, kv_blocks=50_000, block_size=_BLOCK))
        usage = rng.uniform(0.2, 0.21)
        router.observe(LoadReported(_place(number), running=20, waiting=0, kv_usage=usage, now=0.0))
    return router


def index_figures(blocks: int) -> dict[str, Any]:
    """Return rates in blocks/s, memory in bytes a block and the time to restore `blocks`."""
    hashes = np.random.default_rng(2).integers(0, 2**64, blocks, np.uint64)
    router = router_of(64)
    figures: dict[str, Any] = {"blocks": blocks}
    for size in (1, 64):
        part = hashes[: min(blocks, 3200 * size)]
        stored = [BlocksStored(_place(n % 64), it) for n, it in enumerate(_cut(part, size))]
        removed = [BlocksRemoved(it.place, it.hashes) for it in stored]
        for name, events in (("stored", stored), ("removed", removed)):
            took_s = _timed(partial(_observe, router, events))
            figures[f"{name}_per_s_in_events_of_{size}"] = round(len(part) / took_s)
    figures["restore_s"] = round(_timed(lambda: _restore(router, hashes)), 2)
    figures["bytes_per_block"] = _bytes_per_block(hashes, holders=1)
    figures["bytes_per_block_on_8_places"] = _bytes_per_block(hashes, holders=8)
    figures["longest_change_ms"] = _longest_change_ms(hashes)
    return figures


def _observe(router: KvRouter, events: Sequence[RouterEvent]) -> None:
    for event in events:
        router.observe(event)


def _restore(router: KvRouter, hashes: Hashes) -> None:
    for part in snapshot_parts(hashes):
        if part.first:
            router.observe(BlocksCleared(_place(0)))
        router.observe(BlocksStored(_place(0), part.hashes))


def _bytes_per_block(hashes: Hashes, holders: int) -> float:
    """Return what an index of 64 places takes when `holders` of them hold each block."""
    index = PrefixIndex()
    for number in range(64):
        index.add(_place(number), number)
    tracemalloc.start()
    for at, chain in enumerate(_cut(hashes, 64)):
        for holder in range(holders):
            index.store(_place((at + 8 * holder) % 64), chain)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(size / len(index), 1)


def _longest_change_ms(hashes: Hashes) -> float:
    """Return the longest time an event of 64 blocks takes.

    A place stores half of the blocks, and then the other half while it evicts the first.
    """
    router, stored = router_of(1), list(_cut(hashes, 64))
    half = len(stored) // 2
    longest_s = 0.0
    for at, part in enumerate(stored):
        events: list[RouterEvent] = [BlocksStored(_place(0), part)]
        if at >= half:
            events.append(BlocksRemoved(_place(0), stored[at - half]))
        longest_s = max(longest_s, *(_timed(partial(router.observe, event)) for event in events), 0)
    return round(longest_s * 1e3, 2)


def _place(number: int) -> Place:
    return Place(f"worker-{number}")


def _prompt(rng: np.random.Generator, tokens: int) -> "array[int]":
    return array("i", rng.integers(0, 150_000, tokens, np.int32).tobytes())


def _cut(hashes: Hashes, size: int) -> Iterator[Hashes]:
    return (hashes[at : at + size] for at in range(0, len(hashes), size))


def _timed(work: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _median_us(work: Callable[[], Any], repeats: int) -> float:
    return median(_timed(work) for _ in range(repeats)) * 1e6


def _print(report: dict[str, Any]) -> None:
    print(f"{'tokens':>8} {'places':>7} {'known':>9} {'unknown':>9} {'hashing':>9}   (µs)")
    for row in report["decision_us"]:
        print(
            f"{row['tokens']:8} {row['places']:7} {row['known']:9} {row['unknown']:9} "
            f"{row['hashing']:9}"
        )
    for name, value in report["index"].items():
        print(f"{name:36} {value:>12,}")


def main() -> int:
    """Run as `python -m benchmarks.router_speed`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router_speed", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
