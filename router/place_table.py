"""The places there are, each with a row number: what is counted per place stands in arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.router import Place, RouteRequest, WorkerJoined

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Worker:
    rows: tuple[int, ...]  # by rank
    kv_blocks: float  # of each rank, in blocks of the router's size; 0 is unknown


class PlaceTable:
    """Rows of places, and which of them may be chosen.

    A row is its place's as long as the place is a member or somebody keeps it (`release`).
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._row_of: dict[Place, int] = {}
        self._places: list[Place | None] = []
        self._unused: list[int] = []
        self._workers: dict[str, _Worker] = {}
        self._stalled: set[str] = set()
        self._fit: Rows | None = None  # who may be chosen when nothing is pinned or excluded

    def __len__(self) -> int:
        """How many rows there are, in use or not."""
        return len(self._places)

    def row(self, place: Place) -> int | None:
        """The place's row, None when it has none."""
        return self._row_of.get(place)

    def place(self, row: int) -> Place:
        """The place of a row that is in use."""
        place = self._places[row]
        assert place is not None
        return place

    def is_member(self, place: Place) -> bool:
        """Whether the place has joined and not left."""
        worker = self._workers.get(place.worker_id)
        return worker is not None and 0 <= place.rank < len(worker.rows)

    def kv_blocks(self, place: Place) -> float:
        """A member's capacity in blocks of the router's size, 0 when it is unknown."""
        return self._workers[place.worker_id].kv_blocks

    def give_row(self, place: Place) -> int:
        """Give the place a row that nobody uses; it must have none."""
        if self._unused:
            row = self._unused.pop()
            self._places[row] = place
        else:
            row = len(self._places)
            self._places.append(place)
        self._row_of[place] = row
        return row

    def release(self, place: Place) -> None:
        """Take the row from a place that is no member; it may be given to another one."""
        row = self._row_of.pop(place)
        self._places[row] = None
        self._unused.append(row)

    def join(self, event: WorkerJoined, rows: tuple[int, ...]) -> None:
        """Make a worker's ranks members; `rows` are theirs."""
        scale = event.block_size / self._block_size if event.block_size else 1.0
        self._workers[event.worker_id] = _Worker(rows, event.kv_blocks * scale)
        self._fit = None

    def leave(self, worker_id: str) -> list[Place]:
        """Members no more; returns the worker's places."""
        worker = self._workers.pop(worker_id, None)
        self._stalled.discard(worker_id)
        self._fit = None
        return [] if worker is None else [self.place(row) for row in worker.rows]

    def stall(self, worker_id: str, stalled: bool) -> None:
        """Note that a member makes no progress, or does again."""
        if stalled and worker_id in self._workers:
            self._stalled.add(worker_id)
        else:
            self._stalled.discard(worker_id)
        self._fit = None

    def members(self) -> Rows:
        """The rows of all members."""
        return _array([row for worker in self._workers.values() for row in worker.rows])

    def candidates(self, request: RouteRequest) -> Rows:
        """Rows that may take the request, workers in the order they joined.

        The pinned worker and rank alone where they are set, none of `exclude`, and stalled ones
        only when there are no others.
        """
        if request.pinned is None and request.pinned_rank is None and not request.exclude:
            if self._fit is None:
                self._fit = self._rows_for(request)
            return self._fit
        return self._rows_for(request)

    def _rows_for(self, request: RouteRequest) -> Rows:
        workers = [
            name
            for name in self._workers
            if name not in request.exclude and request.pinned in (None, name)
        ]
        moving = [name for name in workers if name not in self._stalled]
        rank = request.pinned_rank
        return _array(
            [
                row
                for name in moving or workers
                for number, row in enumerate(self._workers[name].rows)
                if rank in (None, number)
            ]
        )


def _array(rows: list[int]) -> Rows:
    return np.array(rows, np.intp)
