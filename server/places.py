"""The places of one model and the bounded queue before them. Decisions only."""

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime.errors import Overloaded

T = TypeVar("T")
# When every place is taken, a queue of a quarter of them makes a request wait for as long as a
# quarter of an answer takes. A longer one serves no more requests, all of them later.
_PLACES_PER_WAITING = 4
_KEPT_GONE = 16


class Places(Generic[T]):
    """The places of one model, counted in sequences.

    `capacity` returns how many sequences may run now; None is no limit. What has to wait does so
    by priority (the lower goes first, as in vLLM), then in order of arrival. At most `queue_limit`
    requests wait; None is a quarter of the capacity. A request larger than the capacity runs when
    nothing else does.
    """

    def __init__(self, capacity: Callable[[], int | None], queue_limit: int | None) -> None:
        self._capacity = capacity
        self._queue_limit = queue_limit
        self._running: dict[T, int] = {}
        self._used = 0
        self._waiting: dict[T, int] = {}
        self._order: list[tuple[int, int, T]] = []
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def unused(self) -> bool:
        """Whether nobody runs or waits."""
        return not self._running and not self._waiting

    def enter(self, item: T, *, sequences: int, priority: int) -> bool:
        """Give `item` a place, True, or let it wait, False; raises Overloaded if it may not."""
        if not self._waiting and self._fits(sequences):
            self._take(item, sequences)
            return True
        if len(self._waiting) >= self._most_waiting():
            raise Overloaded(
                f"all places are taken and {len(self._waiting)} requests wait for one; "
                "try again later"
            )
        self._waiting[item] = sequences
        heapq.heappush(self._order, (priority, next(self._numbers), item))
        return False

    def leave(self, item: T) -> None:
        """Give up the place, or the wait for one. Unknown items are ignored."""
        self._used -= self._running.pop(item, 0)
        if self._waiting.pop(item, None) is not None:
            self._forget_the_gone()

    def next(self) -> T | None:
        """Give a free place to whoever is first; None when nobody waits or nothing fits."""
        while self._order:
            item = self._order[0][2]
            sequences = self._waiting.get(item)
            if sequences is None:
                heapq.heappop(self._order)
                continue
            if not self._fits(sequences):
                return None
            heapq.heappop(self._order)
            del self._waiting[item]
            self._take(item, sequences)
            return item
        return None

    def everyone_waiting(self) -> list[T]:
        """Who waits, in no order."""
        return list(self._waiting)

    def _forget_the_gone(self) -> None:
        """Keep no more of those who gave up than of those who wait."""
        if len(self._order) > 2 * len(self._waiting) + _KEPT_GONE:
            self._order = [entry for entry in self._order if entry[2] in self._waiting]
            heapq.heapify(self._order)

    def _most_waiting(self) -> int:
        if self._queue_limit is not None:
            return self._queue_limit
        return math.ceil((self._capacity() or 0) / _PLACES_PER_WAITING)

    def _fits(self, sequences: int) -> bool:
        capacity = self._capacity()
        return capacity is None or self._used + sequences <= capacity or not self._running

    def _take(self, item: T, sequences: int) -> None:
        self._running[item] = sequences
        self._used += sequences
