"""The KV-aware policy: where most of the prompt is cached, unless others have less to do."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from router.cost import Floats, cheapest, drawn
from router.place_table import Rows
from router.policy import Policy
from router.prefix_index import PrefixIndex
from router.routed_blocks import AssumedBlocks, ExpectedBlocks, RoutedBlocks
from router.router import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Choice,
    LoadReported,
    Place,
    RouteRequest,
    RouterEvent,
    RouterStats,
    WorkerJoined,
)
from router.settings import RouterSettings
from wire.block_hash import Hashes, prefix_hashes, root_hash

_NO_BOUND = 2**62


class KvRouter(Policy):
    """Weighs each place's share of the prompt against its load (router/cost.py).

    A prompt that no place holds any of goes to the least loaded one, ties at random. With KV
    events, a worker whose block size is not the router's has no place in the index: the hashes of
    its blocks would be of other tokens. It is chosen by its load.
    """

    def __init__(self, settings: RouterSettings) -> None:
        super().__init__(settings)
        self._routed: RoutedBlocks
        if settings.use_kv_events:
            self.index = PrefixIndex(settings.max_blocks_per_worker, settings.prune_ratio)
            self._routed = ExpectedBlocks(self.index)
        else:
            self.index = PrefixIndex(_NO_BOUND)
            self._routed = AssumedBlocks(
                self.index,
                ttl_s=settings.ttl_s,
                max_blocks=settings.max_blocks_per_worker,
                prune_ratio=settings.prune_ratio,
            )

    def observe(self, event: RouterEvent) -> None:
        """Learn a fact about the workers."""
        match event:
            case BlocksStored() | BlocksRemoved() | BlocksCleared():
                if self._settings.use_kv_events:
                    self._observe_blocks(event)
                return
            case LoadReported():
                self.index.sweep()
                self._routed.expire(event.now)
        super().observe(event)

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a place; None when no worker may take the request; raises Overloaded."""
        self._routed.expire(now)
        return super().choose(request, now)

    def _decide(self, request: RouteRequest, rows: Rows) -> Choice:
        hashes = self._hashes(request)
        overlaps, cost = self._weigh(request, rows, hashes, exact=self._settings.temperature > 0)
        at = self._best(rows, overlaps, cost)
        place = self._table.place(int(rows[at]))
        return Choice(
            worker_id=place.worker_id,
            rank=place.rank,
            overlap_blocks=int(overlaps[at]),
            prompt_blocks=len(hashes),
            cost=float(cost[at]),
            hashes=hashes,
        )

    def started(self, request: RouteRequest, choice: Choice, now: float) -> None:
        """Count the request and its blocks on its place."""
        super().started(request, choice, now)
        if choice.hashes is not None:
            place = Place(choice.worker_id, choice.rank)
            overlap = choice.overlap_blocks
            self._routed.started(request.request_id, place, choice.hashes, overlap, now)

    def finished(self, request_id: str, now: float) -> None:
        """Count the request no more."""
        super().finished(request_id, now)
        self._routed.finished(request_id)

    def work(self, now: float) -> bool:
        """Take in some of a long prompt that was sent."""
        return self._routed.work(now)

    def stats(self) -> RouterStats:
        """The size of the index."""
        return RouterStats(self.index.counts(), self.index.evicted + self._routed.evicted)

    def _join(self, event: WorkerJoined) -> None:
        super()._join(event)
        same = event.block_size == self._settings.block_size
        for rank in range(event.ranks if same or not self._settings.use_kv_events else 0):
            place = Place(event.worker_id, rank)
            row = self._table.row(place)
            assert row is not None
            self.index.add(place, row)

    def _leave(self, worker_id: str) -> list[Place]:
        places = super()._leave(worker_id)
        for place in places:
            self.index.drop(place)
            self._routed.forget(place)
        return places

    def _observe_blocks(self, event: BlocksStored | BlocksRemoved | BlocksCleared) -> None:
        match event:
            case BlocksStored(place, hashes):
                self.index.store(place, hashes)
            case BlocksRemoved(place, hashes):
                self.index.remove(place, hashes)
            case BlocksCleared(place):
                self.index.clear(place)
                self._routed.forget(place)

    def _judge(self, request: RouteRequest, rows: Rows) -> tuple[NDArray[np.int64], Floats]:
        return self._weigh(request, rows, self._hashes(request), exact=True)

    def _hashes(self, request: RouteRequest) -> Hashes:
        root = root_hash(request.lora_name, request.cache_salt)
        return prefix_hashes(request.token_ids, self._settings.block_size, root)

    def _weigh(
        self, request: RouteRequest, rows: Rows, hashes: Hashes, *, exact: bool
    ) -> tuple[NDArray[np.int64], Floats]:
        """Return overlap in blocks and cost of each row.

        Unless `exact`, rows that cannot be the cheapest may be given too high a cost.
        """
        overlaps = self.index.overlaps_by_row(hashes, len(self._table))
        self._routed.deepen(overlaps, hashes)
        overlaps = overlaps[rows]
        weight = self._settings.overlap_weight
        cost = self._costs(rows)
        cost += (weight + 1) * len(request.token_ids) / self._settings.block_size
        saved = weight * overlaps
        cost -= saved
        if not overlaps.any():
            return overlaps, cost

        def common(at: int) -> float:
            """Return the cost of what running requests have in common with the prompt."""
            used, computing = self._load.shared(int(rows[at]), hashes[: overlaps[at]])
            return used + weight * computing

        if exact:
            for at in np.flatnonzero(overlaps).tolist():
                cost[at] -= common(at)
        else:
            # It lies within the overlap.
            _lower_the_cheapest(cost, cost - saved - overlaps, common)
        return overlaps, cost

    def _best(self, rows: Rows, overlaps: NDArray[np.int64], cost: Floats) -> int:
        """Return the position of the row to take."""
        tied = cheapest(cost)
        if len(tied) == 1 and not self._settings.temperature:
            return int(tied[0])
        if overlaps.any():
            if self._settings.temperature:
                return drawn(cost, self._settings.temperature, self._random)
            held = np.array([self.index.count(self._table.place(rows[at])) for at in tied])
            tied = tied[held == held.min()]
        return int(tied[self._random.randrange(len(tied))])


def _lower_the_cheapest(cost: Floats, least: Floats, by: Callable[[int], float]) -> None:
    """Lower costs where they could fall to the lowest: mostly in one or two positions.

    `by` returns by how much, and `least` bounds what is left.
    """
    lowest = math.inf
    at = int(least.argmin())
    while least[at] <= lowest and least[at] < math.inf:
        if least[at] < cost[at]:
            cost[at] -= by(at)
        lowest = min(lowest, float(cost[at]))
        least[at] = math.inf
        at = int(least.argmin())
