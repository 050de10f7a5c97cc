"""Routing policies that need no knowledge of prompts."""

import random
from collections.abc import Callable

from router.router import (
    Active,
    BusyThresholds,
    Candidate,
    Choice,
    Place,
    Router,
    RouteRequest,
    RouterEvent,
    RouterStats,
    WorkerJoined,
    WorkerLeft,
)


class _Members:
    """The workers that may be chosen, in the order they joined."""

    def __init__(self) -> None:
        self._workers: dict[str, None] = {}

    def observe(self, event: RouterEvent) -> None:
        match event:
            case WorkerJoined(worker_id):
                self._workers[worker_id] = None
            case WorkerLeft(worker_id):
                self._workers.pop(worker_id, None)

    def candidates(self, request: RouteRequest) -> list[str]:
        """Workers that may take the request; the pinned one alone when it is set."""
        return [
            worker
            for worker in self._workers
            if worker not in request.exclude and request.pinned in (None, worker)
        ]


class _Stateless:
    """Policies that do not count running requests."""

    def __init__(self) -> None:
        self._members = _Members()
        self.thresholds = BusyThresholds()

    def observe(self, event: RouterEvent) -> None:
        self._members.observe(event)

    def started(self, request: RouteRequest, choice: Choice, now: float) -> None:
        """Nothing to count."""

    def advanced(self, request_id: str, tokens: int, now: float) -> None:
        """Nothing to count."""

    def finished(self, request_id: str, now: float) -> None:
        """Nothing to count."""

    def explain(self, request: RouteRequest, now: float) -> list[Candidate]:
        """Every candidate: all are equal."""
        return [Candidate(place=Place(it)) for it in self._members.candidates(request)]

    def active(self) -> dict[Place, Active]:
        """Nothing is counted."""
        return {}

    def stats(self) -> RouterStats:
        """Nothing is kept."""
        return RouterStats({}, 0)


class RoundRobin(_Stateless):
    """Each worker in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick the next worker in turn."""
        candidates = self._members.candidates(request)
        if not candidates:
            return None
        worker = candidates[self._turn % len(candidates)]
        self._turn += 1
        return Choice(worker_id=worker)


class Random(_Stateless):
    """Any worker with equal chance; `seed` makes the sequence repeatable."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a worker at random."""
        candidates = self._members.candidates(request)
        if not candidates:
            return None
        worker = self._random.choice(candidates)
        return Choice(worker_id=worker)


POLICIES: dict[str, Callable[[], Router]] = {"round-robin": RoundRobin, "random": Random}
