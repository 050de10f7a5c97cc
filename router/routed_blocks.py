"""What places will hold because of requests that were sent there."""

from collections import deque
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.block_masks import SLOT, parted
from router.prefix_index import PrefixIndex
from router.prompt_tree import PromptTree
from router.router import Place
from wire.block_hash import Hashes

_BLOCKS_AT_ONCE = 1024
_CALLS_TO_TAKE_IN = 8
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

    def work(self, now: float) -> bool:
        """Do some of what can wait; returns whether there is more."""
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

    def work(self, now: float) -> bool:
        """Nothing waits."""
        return False


class _Sent:
    """What was sent to one place: each block's last sending, by slot, and sendings in order.

    `pruned`: there was too much, and still is more than is to be kept.
    """

    def __init__(self) -> None:
        _, self.last = parted()
        self.sendings: deque[tuple[float, int, Hashes]] = deque()
        self.pruned = False


class AssumedBlocks:
    """Instead of KV events: a place holds for `ttl_s` seconds what was last sent there.

    With more than `max_blocks` on a place, what was sent longest ago is forgotten, by whole
    sendings, down to `prune_ratio` of it. All goes in steps of bounded time. So a long prompt is
    several sendings, its end the first, which is forgotten first; `work` takes them in, and the
    other calls where nobody calls it. Until they all are, the prompt is expected.
    """

    def __init__(
        self, index: PrefixIndex, *, ttl_s: float, max_blocks: int, prune_ratio: float
    ) -> None:
        self.evicted = 0
        self._index = index
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._kept_blocks = int(max_blocks * prune_ratio)
        self._expected = ExpectedBlocks(index)
        self._waiting: deque[tuple[str, Place, Hashes, bool]] = deque()  # the last part: True
        self._sent: dict[Place, _Sent] = {}
        self._due: deque[tuple[float, Place]] = deque()
        self._numbers = count()

    def started(
        self, request_id: str, place: Place, hashes: Hashes, overlap_blocks: int, now: float
    ) -> None:
        """Note a sending, for `ttl_s` from now."""
        hashes = hashes[: self._max_blocks]
        if len(hashes) <= _BLOCKS_AT_ONCE:
            self._send(place, hashes, now)
            return
        self._expected.started(request_id, place, hashes, overlap_blocks, now)
        for end in range(len(hashes), 0, -_BLOCKS_AT_ONCE):
            begin = max(0, end - _BLOCKS_AT_ONCE)
            self._waiting.append((request_id, place, hashes[begin:end], begin == 0))

    def finished(self, request_id: str) -> None:
        """What a request leaves in the cache stays there."""

    def deepen(self, overlaps: NDArray[np.int64], hashes: Hashes) -> None:
        """Count what is yet to be taken in."""
        self._expected.deepen(overlaps, hashes)

    def forget(self, place: Place) -> None:
        """Forget what was sent to this place."""
        self._sent.pop(place, None)
        self._expected.forget(place)
        self._waiting = deque(part for part in self._waiting if part[1] != place)

    def expire(self, now: float) -> None:
        """Forget what was sent `ttl_s` ago."""
        for _ in range(-(-len(self._waiting) // _CALLS_TO_TAKE_IN)):
            self.work(now)
        blocks = 0
        while self._due and self._due[0][0] <= now and blocks < _BLOCKS_AT_ONCE:
            _, place = self._due.popleft()
            sent = self._sent.get(place)
            if sent is not None and sent.sendings and sent.sendings[0][0] <= now:
                blocks += len(sent.sendings[0][2])
                self._undo_oldest(place, sent)

    def work(self, now: float) -> bool:
        """Take in some of what waits."""
        if self._waiting:
            request_id, place, hashes, last = self._waiting.popleft()
            self._send(place, hashes, now)
            if last:
                self._expected.finished(request_id)
        return bool(self._waiting)

    def _send(self, place: Place, hashes: Hashes, now: float) -> None:
        self._index.store(place, hashes)
        if not len(hashes) or not self._index.count(place):
            return  # nothing to share, or a place that the index does not know
        sent = self._sent.setdefault(place, _Sent())
        number, until = next(self._numbers), now + self._ttl_s
        last = sent.last
        for block in hashes.tolist():
            last[block & SLOT][block] = number
        sent.sendings.append((until, number, hashes))
        self._due.append((until, place))
        sent.pruned = sent.pruned or self._index.count(place) > self._max_blocks
        blocks = 0
        while sent.pruned and blocks < 2 * _BLOCKS_AT_ONCE and len(sent.sendings) > 1:
            blocks += len(sent.sendings[0][2])
            self.evicted += self._undo_oldest(place, sent)
            sent.pruned = self._index.count(place) > self._kept_blocks

    def _undo_oldest(self, place: Place, sent: _Sent) -> int:
        """Forget the oldest sending's blocks unless they were sent again; returns how many."""
        _, number, hashes = sent.sendings.popleft()
        last = sent.last
        gone = [block for block in hashes.tolist() if last[block & SLOT].get(block) == number]
        for block in gone:
            del last[block & SLOT][block]
        return self._index.remove(place, np.array(gone, np.uint64))
