"""The KV-aware policy: where most of the prompt is cached, unless others have less to do."""

import math

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
        super().observe(event)
        match event:
            case LoadReported():
                self.index.sweep()
                self._routed.expire(event.now)
            case BlocksStored() | BlocksRemoved() | BlocksCleared():
                if self._settings.use_kv_events:
                    self._observe_blocks(event)

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a place; None when no worker may take the request; raises Overloaded."""
        self._routed.expire(now)
        return super().choose(request, now)

    def _decide(self, request: RouteRequest, rows: Rows) -> Choice:
        hashes = self._hashes(request)
        overlaps = self._overlaps(hashes, rows)
        drawn_by_chance = self._settings.temperature > 0
        cost = self._prompt_costs(request, rows, hashes, overlaps, exact=drawn_by_chance)
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
                self._routed.stored(place, hashes)
                self.index.store(place, hashes)
            case BlocksRemoved(place, hashes):
                self.index.remove(place, hashes)
            case BlocksCleared(place):
                self.index.clear(place)
                self._routed.forget(place)

    def _judge(self, request: RouteRequest, rows: Rows) -> tuple[NDArray[np.int64], Floats]:
        hashes = self._hashes(request)
        overlaps = self._overlaps(hashes, rows)
        return overlaps, self._prompt_costs(request, rows, hashes, overlaps, exact=True)

    def _hashes(self, request: RouteRequest) -> Hashes:
        root = root_hash(request.lora_name, request.cache_salt)
        return prefix_hashes(request.token_ids, self._settings.block_size, root)

    def _overlaps(self, hashes: Hashes, rows: Rows) -> NDArray[np.int64]:
        """Return how many blocks of the prompt each row holds, int64 [len(rows)]."""
        return self.index.overlaps_by_row(hashes, len(self._table))[rows]

    def _prompt_costs(
        self,
        request: RouteRequest,
        rows: Rows,
        hashes: Hashes,
        overlaps: NDArray[np.int64],
        *,
        exact: bool,
    ) -> Floats:
        """Return each row's cost; unless `exact`, too much for rows that cannot be the cheapest.

        What running requests have in common with the prompt lies within the overlap. So only rows
        whose cost could fall to the lowest are asked for it, mostly one or two.
        """
        weight = self._settings.overlap_weight
        blocks = len(request.token_ids) / self._settings.block_size
        cost = self._costs(rows, blocks - overlaps) + blocks
        if not overlaps.any():
            return cost
        least = cost - (1 + weight) * overlaps
        lowest = math.inf
        for at in np.argsort(least).tolist():
            if least[at] > lowest and not exact:
                break
            if overlaps[at]:
                used, computing = self._load.shared(int(rows[at]), hashes[: overlaps[at]])
                cost[at] -= used + weight * computing
            lowest = min(lowest, float(cost[at]))
        return cost

    def _best(self, rows: Rows, overlaps: NDArray[np.int64], cost: Floats) -> int:
        """Return the position of the row to take."""
        miss = not overlaps.any()
        if self._settings.temperature > 0 and not miss:
            return drawn(cost, self._settings.temperature, self._random)
        tied = cheapest(cost)
        if len(tied) > 1 and not miss:
            held = np.array([self.index.count(self._table.place(rows[at])) for at in tied])
            tied = tied[held == held.min()]
        return int(tied[self._random.randrange(len(tied))])
