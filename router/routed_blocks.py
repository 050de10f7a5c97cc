"""What places will hold because of requests that were sent there."""

from collections import deque
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.prefix_index import PrefixIndex
from router.prompt_tree import PromptTree
from router.router import Place
from wire.block_hash import Hashes

_EXPIRED_BLOCKS_AT_ONCE = 2048
_FEW_ROWS = 16


class RoutedBlocks(Protocol):
    """Adds to an index what follows from the router's own decisions."""

    evicted: int

    def started(
        self, request_id: str, place: Place, hashes: Hashes, overlap_blocks: int, now: float
    ) -> None:
        """A prompt was sent to a place that is believed to hold its first `overlap_blocks`."""
        ...

    def finished(self, request_id: str) -> None:
        """The request is over."""
        ...

    def deepen(self, overlaps: NDArray[np.int64], hashes: Hashes) -> None:
        """Raise the overlaps of a prompt, int64 [rows], where more than the index says is there."""
        ...

    def forget(self, place: Place) -> None:
        """The index has forgotten all of this place."""
        ...

    def expire(self, now: float) -> None:
        """Let go of what is too old at `now`."""
        ...


class ExpectedBlocks:
    """Beside KV events: a running prompt's blocks count as held before its place says so.

    Two equal prompts that are sent together thereby meet on one worker. An expectation lives no
    longer than its request: what the place has not confirmed by then is not there.
    """

    evicted = 0

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._prompts = PromptTree()
        self._requests: dict[str, tuple[Place, int, Hashes]] = {}

    def started(
        self, request_id: str, place: Place, hashes: Hashes, overlap_blocks: int, now: float
    ) -> None:
        """Expect the blocks of a prompt, unless the index knows nothing of its place."""
        self.finished(request_id)
        row = self._index.row(place)
        if row is not None:
            self._prompts.add(row, hashes, len(hashes))
            self._requests[request_id] = place, row, hashes

    def finished(self, request_id: str) -> None:
        """Expect them no more."""
        expected = self._requests.pop(request_id, None)
        if expected is not None:
            _, row, hashes = expected
            self._prompts.remove(row, hashes)

    def deepen(self, overlaps: NDArray[np.int64], hashes: Hashes) -> None:
        """Count what running prompts have in common with this one."""
        for rows, depth in self._prompts.depths(hashes):
            if len(rows) > _FEW_ROWS:
                overlaps[rows] = np.maximum(overlaps[rows], depth)
                continue
            for row in rows:
                overlaps[row] = max(overlaps.item(row), depth)

    def forget(self, place: Place) -> None:
        """Expect nothing of this place."""
        of_place = [name for name, (where, _, _) in self._requests.items() if where == place]
        for request_id in of_place:
            self.finished(request_id)

    def expire(self, now: float) -> None:
        """Expectations end with their requests."""


class _Sent:
    """What was sent to one place: each block with its last sending, sendings from the oldest."""

    def __init__(self) -> None:
        self.last: dict[int, int] = {}
        self.sendings: deque[tuple[float, int, Hashes]] = deque()


class AssumedBlocks:
    """Instead of KV events: a place holds for `ttl_s` seconds what was last sent there.

    With more than `max_blocks` on a place, what was sent longest ago is forgotten, by whole
    prompts, down to `prune_ratio` of it. What expires goes in steps of bounded time, one with each
    call of `expire`.
    """

    def __init__(
        self, index: PrefixIndex, *, ttl_s: float, max_blocks: int, prune_ratio: float
    ) -> None:
        self.evicted = 0
        self._index = index
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._kept_blocks = int(max_blocks * prune_ratio)
        self._sent: dict[Place, _Sent] = {}
        self._due: deque[tuple[float, Place]] = deque()
        self._numbers = count()

    def started(
        self, request_id: str, place: Place, hashes: Hashes, overlap_blocks: int, now: float
    ) -> None:
        """Note a sending, for `ttl_s` from now."""
        hashes = hashes[: self._max_blocks]
        self._index.store(place, hashes)
        if not len(hashes) or not self._index.count(place):
            return  # nothing to share, or a place that the index does not know
        sent = self._sent.setdefault(place, _Sent())
        number, until = next(self._numbers), now + self._ttl_s
        sent.last.update(dict.fromkeys(hashes.tolist(), number))
        sent.sendings.append((until, number, hashes))
        self._due.append((until, place))
        if self._index.count(place) > self._max_blocks:
            while self._index.count(place) > self._kept_blocks and len(sent.sendings) > 1:
                self.evicted += self._undo_oldest(place, sent)

    def finished(self, request_id: str) -> None:
        """What a request leaves in the cache stays there."""

    def deepen(self, overlaps: NDArray[np.int64], hashes: Hashes) -> None:
        """The index has it all."""

    def forget(self, place: Place) -> None:
        """Forget what was sent to this place."""
        self._sent.pop(place, None)

    def expire(self, now: float) -> None:
        """Forget what was sent `ttl_s` ago, some thousand blocks at once."""
        blocks = 0
        while self._due and self._due[0][0] <= now and blocks < _EXPIRED_BLOCKS_AT_ONCE:
            _, place = self._due.popleft()
            sent = self._sent.get(place)
            if sent is not None and sent.sendings and sent.sendings[0][0] <= now:
                blocks += len(sent.sendings[0][2])
                self._undo_oldest(place, sent)

    def _undo_oldest(self, place: Place, sent: _Sent) -> int:
        """Forget the oldest sending's blocks unless they were sent again; returns how many."""
        _, number, hashes = sent.sendings.popleft()
        last = sent.last
        gone = [block for block in hashes.tolist() if last.get(block) == number]
        for block in gone:
            del last[block]
        return self._index.remove(place, np.array(gone, np.uint64))
