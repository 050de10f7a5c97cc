"""Policies compared on a small trace of conversations, made from a seed."""

import heapq
import random
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pytest

from router.policies import make_router
from router.router import BlocksRemoved, BlocksStored, Place, Router, RouteRequest, WorkerJoined
from router.settings import RouterSettings
from wire.block_hash import prefix_hashes

BLOCK = 16
WORKERS = ("a", "b", "c", "d")
CACHE_BLOCKS = 600
Tokens: TypeAlias = "array[int]"


@dataclass(order=True)
class Event:
    at_s: float
    order: int
    kind: str = field(compare=False)
    request_id: str = field(compare=False)
    tokens: Tokens = field(compare=False)


@dataclass
class Outcome:
    """What a policy made of a trace: blocks found in caches, requests by worker."""

    cached: int = 0
    asked: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    most_running: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        return self.cached / self.asked


class Cache:
    """What one worker really holds: the blocks used last."""

    def __init__(self) -> None:
        self._blocks: dict[int, None] = {}

    def use(self, blocks: list[int]) -> tuple[int, list[int], list[int]]:
        """Return how many were there, what is stored and what had to go for it."""
        hits = 0
        while hits < len(blocks) and blocks[hits] in self._blocks:
            hits += 1
        stored = [block for block in blocks if block not in self._blocks]
        for block in reversed(blocks):  # the end of a chain is the first to go
            self._blocks.pop(block, None)
            self._blocks[block] = None
        gone = list(self._blocks)[: max(0, len(self._blocks) - CACHE_BLOCKS)]
        for block in gone:
            del self._blocks[block]
        return hits, stored, gone


def conversations(rng: random.Random, *, shared: int) -> list[tuple[float, Tokens]]:
    """Prompts with their times: 40 conversations of 6 turns, `shared` tokens alike in each."""
    head = [rng.randrange(50_000) for _ in range(shared)]
    prompts = []
    for _ in range(40):
        at_s, prompt = rng.uniform(0, 60), head + [rng.randrange(50_000) for _ in range(400)]
        for _ in range(6):
            prompts.append((at_s, array("i", prompt)))
            prompt = prompt + [rng.randrange(50_000) for _ in range(100)]
            at_s += rng.uniform(4, 12)
    return sorted(prompts, key=lambda it: it[0])


def replay(made: Router, prompts: list[tuple[float, Tokens]], service_s: float) -> Outcome:
    outcome, caches, running = Outcome(), {name: Cache() for name in WORKERS}, Counter[str]()
    for name in WORKERS:
        made.observe(WorkerJoined(name, kv_blocks=CACHE_BLOCKS, block_size=BLOCK))
    events = [Event(at, n, "ask", str(n), tokens) for n, (at, tokens) in enumerate(prompts)]
    heapq.heapify(events)
    placed: dict[str, str] = {}
    while events:
        event = heapq.heappop(events)
        if event.kind == "end":
            running[placed[event.request_id]] -= 1
            made.finished(event.request_id, event.at_s)
            continue
        request = RouteRequest(request_id=event.request_id, token_ids=event.tokens)
        choice = made.choose(request, event.at_s)
        assert choice is not None
        made.started(request, choice, event.at_s)
        name = placed[event.request_id] = choice.worker_id
        hashes = prefix_hashes(event.tokens, BLOCK)
        hits, stored, gone = caches[name].use(hashes.tolist())
        made.advanced(event.request_id, 1, event.at_s)
        made.observe(BlocksStored(Place(name), hashes[[b in set(stored) for b in hashes.tolist()]]))
        made.observe(BlocksRemoved(Place(name), np.array(gone, np.uint64)))
        outcome.cached += hits
        outcome.asked += len(hashes)
        outcome.requests[name] += 1
        running[name] += 1
        outcome.most_running[name] = max(outcome.most_running[name], running[name])
        end = Event(event.at_s + service_s, event.order, "end", event.request_id, event.tokens)
        heapq.heappush(events, end)
    return outcome


def outcome_of(policy: str, *, shared: int, service_s: float = 2.0, **settings) -> Outcome:
    made = make_router(RouterSettings(policy=policy, block_size=BLOCK, seed=3, **settings))
    return replay(made, conversations(random.Random(11), shared=shared), service_s)


@pytest.mark.parametrize("events", [True, False])
def test_conversations_find_more_of_their_prompts_cached_than_in_turn(events) -> None:
    kv = outcome_of("kv", shared=320, use_kv_events=events)
    in_turn = outcome_of("round-robin", shared=320)
    assert kv.share > in_turn.share + 0.15
    assert kv.share > 0.6


def test_conversations_stay_spread_over_the_workers() -> None:
    kv = outcome_of("kv", shared=320)
    assert max(kv.requests.values()) <= 2 * min(kv.requests.values())
    assert max(kv.most_running.values()) <= 2 * max(
        outcome_of("round-robin", shared=320).most_running.values()
    )


def test_traffic_without_shared_prefixes_is_spread_evenly() -> None:
    rng = random.Random(5)
    prompts = [
        (n / 10, array("i", [rng.randrange(50_000) for _ in range(rng.randrange(100, 300))]))
        for n in range(400)
    ]
    made = make_router(RouterSettings(policy="kv", block_size=BLOCK, seed=3))
    outcome = replay(made, prompts, service_s=2.0)
    assert outcome.cached == 0
    assert max(outcome.requests.values()) <= 1.2 * min(outcome.requests.values())
    assert max(outcome.most_running.values()) <= 1.6 * min(outcome.most_running.values())


def test_the_same_trace_and_seed_give_the_same_choices() -> None:
    assert outcome_of("kv", shared=320) == outcome_of("kv", shared=320)
