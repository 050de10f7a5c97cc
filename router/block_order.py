"""The blocks of one place, in the order in which it stored them."""

from array import array
from collections import deque

import numpy as np

from router.block_masks import keys_of
from wire.block_hash import NO_HASHES, Hashes

# Passes begin with one stale entry for sixteen blocks. With eight entries looked at for each block
# that comes or goes, there are never more than one for eight.
_BLOCKS_PER_STALE = 16
_LOOKED_AT_PER_BLOCK = 8
_WORTHWHILE = 1 / 4


class BlockOrder:
    """Each block once, where it was stored last; a change takes time by its own blocks alone.

    A block that is gone leaves its entry behind, and has a second one when it is stored again:
    `_stale` counts such entries by key. They are found in passes from the oldest entry on, some
    with each change. A pass looks at none that came after its begin, so that of a block's entries
    it meets the oldest first: while its count is not zero, what it meets is stale. Caches evict
    what is old, so that most passes are short; where they find little, the next one goes further.

    A block takes 8 bytes, a stale entry about 100.
    """

    __slots__ = (
        "_ahead",
        "_due",
        "_left",
        "_passed",
        "_reach",
        "_segment",
        "_stale",
        "_surplus",
        "_young",
        "count",
        "entries",
    )

    def __init__(self, segment: int = 1024) -> None:
        self._segment = segment  # entries looked at in one step
        self.count = 0
        self.entries = 0  # blocks and stale ones
        # From the oldest: what this pass has looked at, `_left` segments to look at, younger ones,
        # and one that is not full.
        self._passed: deque[array[int]] = deque()
        self._ahead: deque[array[int]] = deque()
        self._young = array("Q")
        self._left = 0
        self._due = 0  # entries to look at
        self._reach = 1  # segments of a pass
        self._surplus = 0.0  # stale entries that this pass found above those it has to be worth
        self._stale: dict[int, int] = {}

    def store(self, hashes: Hashes) -> None:
        """Append blocks that are not held."""
        blocks = len(hashes)
        self.count += blocks
        self.entries += blocks
        for at in range(0, blocks, self._segment):
            self._young.frombytes(hashes[at : at + self._segment].tobytes())
            if len(self._young) >= self._segment:
                self._seal()
        self._tidy(blocks)

    def remove(self, keys: list[int]) -> None:
        """Take out blocks that are held."""
        self.count -= len(keys)
        stale = self._stale
        for key in keys:
            stale[key] = stale.get(key, 0) + 1
        self._tidy(len(keys))

    def pop_oldest(self, blocks: int) -> Hashes:
        """Take out up to so many blocks, those stored first."""
        self._seal()
        taken = [NO_HASHES]
        while blocks > 0 and self.count:
            segments = self._passed or self._ahead
            live = self._live(segments[0])
            taken.append(live[:blocks])
            self.count -= len(taken[-1])
            self.entries -= len(taken[-1])
            blocks -= len(taken[-1])
            rest = live[len(taken[-1]) :]
            if len(rest):
                segments[0] = _entries(rest)
            else:
                segments.popleft()
                self._left -= segments is self._ahead and self._left > 0
        return np.concatenate(taken)

    def pop_entries(self, entries: int) -> Hashes:
        """Take out up to so many entries, stale ones too: for a place that is gone."""
        self._seal()
        segments = self._ahead or self._passed
        if not segments:
            return NO_HASHES
        last = segments[-1]
        part = last[-entries:]
        del last[-entries:]
        self.entries -= len(part)
        if not last:
            segments.pop()
        return _hashes(part)

    def hashes(self) -> Hashes:
        """Return all blocks, those stored first at the front."""
        self._seal()
        while self._stale:
            self._step()
        return np.concatenate([NO_HASHES, *map(_hashes, self._passed), *map(_hashes, self._ahead)])

    def _tidy(self, blocks: int) -> None:
        self._due += _LOOKED_AT_PER_BLOCK * blocks
        while self._left or self._is_stale():
            if not self._left:
                self._begin()
            if self._due < len(self._ahead[0]):
                return
            self._due -= len(self._ahead[0])
            self._step()
        self._due = 0

    def _is_stale(self) -> bool:
        stale = self.entries - self.count - self._segment
        return _BLOCKS_PER_STALE * stale > self.count

    def _seal(self) -> None:
        if self._young:
            self._ahead.append(self._young)
            self._young = array("Q")

    def _begin(self) -> None:
        self._left = self._reach = min(self._reach, len(self._ahead))
        self._surplus = 0.0

    def _step(self) -> None:
        """Look at one segment, of the next pass if none is under way."""
        if not self._left:
            self._begin()
        self._left -= 1
        segment = self._ahead.popleft()
        live = self._live(segment)
        self._surplus += len(segment) * (1 - _WORTHWHILE) - len(live)
        if self._passed and len(self._passed[-1]) + len(live) <= self._segment:
            self._passed[-1].frombytes(live.tobytes())
        elif len(live):
            self._passed.append(_entries(live))
        if not self._left:
            self._ahead.extendleft(reversed(self._passed))
            self._passed.clear()
            self._reach = 2 * self._reach if self._surplus < 0 else (self._reach + 1) // 2

    def _live(self, segment: "array[int]") -> Hashes:
        """Return a segment without its stale entries, which are forgotten."""
        hashes, stale = _hashes(segment), self._stale
        if not stale:
            return hashes
        keys = keys_of(hashes)
        found = np.flatnonzero(np.fromiter(map(stale.__contains__, keys), np.bool_, len(keys)))
        # A segment can have more entries of a block than are stale: the first ones are.
        gone = []
        for number in found.tolist():
            times = stale.pop(keys[number], 0)
            if times:
                gone.append(number)
            if times > 1:
                stale[keys[number]] = times - 1
        self.entries -= len(gone)
        return np.delete(hashes, gone)


def _entries(hashes: Hashes) -> "array[int]":
    return array("Q", hashes.tobytes())


def _hashes(entries: "array[int]") -> Hashes:
    return np.frombuffer(entries.tobytes(), np.uint64)
