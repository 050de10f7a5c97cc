"""What all policies share: who may be chosen, and how busy everybody is."""

import random
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from router.affinity import Affinity
from router.cost import Floats, load_costs
from router.load import Load
from router.place_table import PlaceTable, Rows
from router.router import (
    Active,
    Candidate,
    Choice,
    LoadReported,
    PeerLoad,
    Place,
    RouteRequest,
    RouterEvent,
    RouterStats,
    WorkerJoined,
    WorkerLeft,
    WorkerStalled,
)
from router.settings import RouterSettings
from runtime.errors import Overloaded
from wire.block_hash import NO_HASHES


class Policy(ABC):
    """A router (router/router.py) that takes one of the rows it is offered."""

    def __init__(self, settings: RouterSettings) -> None:
        self.thresholds = settings.thresholds
        self._settings = settings
        self._per_token = settings.overlap_weight / settings.block_size
        self._random = random.Random(settings.seed)
        self._table = PlaceTable(settings.block_size)
        self._load = Load(self._table, settings.block_size)
        self._affinity = Affinity(settings.session_ttl_s)

    @abstractmethod
    def _decide(self, request: RouteRequest, rows: Rows) -> Choice:
        """Choose one of the rows, of which there is at least one."""

    def observe(self, event: RouterEvent) -> None:
        """Learn a fact about the workers."""
        match event:
            case WorkerJoined():
                self._leave(event.worker_id)
                self._join(event)
            case WorkerLeft():
                self._leave(event.worker_id)
            case WorkerStalled():
                self._table.stall(event.worker_id, event.stalled)
            case LoadReported():
                self._load.reported(event)
            case PeerLoad():
                self._load.peer(event)

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a place; None when no worker may take the request; raises Overloaded.

        A session's own place wins if it is among those that may take the request.
        """
        rows = self._eligible(request)
        if rows is None:
            return None
        home = self._home(request, now)
        if home is not None:
            at_home = rows[rows == home]
            rows = at_home if len(at_home) else rows
        return self._decide(request, rows)

    def explain(self, request: RouteRequest, now: float) -> list[Candidate]:
        """Judge every place that may take the request, best first; changes nothing."""
        rows = self._table.candidates(request)
        if not len(rows):
            return []
        overlaps, cost = self._judge(request, rows)
        judged = zip(
            rows.tolist(),
            overlaps.tolist(),
            cost.tolist(),
            self._load.blocks(rows).tolist(),
            self._load.prefill_tokens(rows).tolist(),
            self._load.busy(rows, self.thresholds).tolist(),
            strict=True,
        )
        candidates = [
            Candidate(
                place=self._table.place(row),
                overlap_blocks=overlap,
                cost=cost,
                active_blocks=round(blocks),
                prefill_tokens=prefill,
                busy=busy,
            )
            for row, overlap, cost, blocks, prefill, busy in judged
        ]
        home = self._affinity.place_of(request, now)
        return sorted(candidates, key=lambda it: (it.busy, it.place != home, it.cost))

    def started(self, request: RouteRequest, choice: Choice, now: float) -> None:
        """Count the request on its place, where its session is from now on."""
        place = Place(choice.worker_id, choice.rank)
        self._affinity.started(request, place, now)
        self._load.started(
            request.request_id,
            place,
            tokens=len(request.token_ids),
            hashes=NO_HASHES if choice.hashes is None else choice.hashes,
            cached_blocks=choice.overlap_blocks,
        )

    def advanced(self, request_id: str, tokens: int, now: float) -> None:
        """Count more tokens of the request's answer."""
        self._load.advanced(request_id, tokens)

    def finished(self, request_id: str, now: float) -> None:
        """Count the request no more."""
        self._load.finished(request_id)

    def work(self, now: float) -> bool:
        """Nothing waits."""
        return False

    def active(self) -> dict[Place, Active]:
        """What this router has running, for its peers."""
        return self._load.active()

    def stats(self) -> RouterStats:
        """Without an index nothing is kept."""
        return RouterStats({}, 0)

    def _join(self, event: WorkerJoined) -> None:
        self._load.joined(event)

    def _leave(self, worker_id: str) -> list[Place]:
        return self._load.left(worker_id)

    def _judge(self, request: RouteRequest, rows: Rows) -> tuple[NDArray[np.int64], Floats]:
        """Return overlap in blocks and cost of each row."""
        return np.zeros(len(rows), np.int64), self._costs(rows)

    def _home(self, request: RouteRequest, now: float) -> int | None:
        """Return the row of the session's place, None when there is none."""
        place = self._affinity.place_of(request, now)
        return None if place is None else self._table.row(place)

    def _costs(self, rows: Rows) -> Floats:
        return load_costs(
            prefill_tokens=self._load.prefill_tokens(rows),
            active_blocks=self._load.blocks(rows),
            per_token=self._per_token,
        )

    def _eligible(self, request: RouteRequest) -> Rows | None:
        """Return the rows that may take the request and are not busy; None if none may take it.

        Raises Overloaded when all that may take it are busy.
        """
        rows = self._table.candidates(request)
        if not len(rows):
            return None
        if self.thresholds.active_decode_blocks is None and (
            self.thresholds.active_prefill_tokens is None
        ):
            return rows
        free: Rows = rows[~self._load.busy(rows, self.thresholds)]
        if not len(free):
            raise Overloaded(_all_busy(request))
        return free


def _all_busy(request: RouteRequest) -> str:
    if request.pinned is None:
        return "all workers are busy; try again later"
    rank = "" if request.pinned_rank is None else f", rank {request.pinned_rank},"
    return f"worker {request.pinned!r}{rank} is busy and the request is pinned to it"
