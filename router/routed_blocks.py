"""What places will hold because of requests that were sent there."""

from collections import deque
from itertools import count
from typing import Protocol

import numpy as np

from router.prefix_index import PrefixIndex
from router.router import Place
from wire.block_hash import Hashes

_EXPIRED_BLOCKS_AT_ONCE = 16_384


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

    def stored(self, place: Place, hashes: Hashes) -> None:
        """The place says that it holds these."""
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
    longer than its request: what the place has not confirmed when the request ends is taken back.
    """

    evicted = 0

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._expected: dict[Place, dict[int, str]] = {}  # block -> the request that brings it
        self._requests: dict[str, tuple[Place, Hashes]] = {}

    def started(
        self, request_id: str, place: Place, hashes: Hashes, overlap_blocks: int, now: float
    ) -> None:
        """Expect the blocks of a prompt that the place has to compute."""
        self.finished(request_id)
        fresh = self._index.store(place, hashes[overlap_blocks:])
        if len(fresh):
            self._requests[request_id] = place, fresh
            expected = self._expected.setdefault(place, {})
            expected.update(dict.fromkeys(fresh.tolist(), request_id))

    def finished(self, request_id: str) -> None:
        """Take back what was not confirmed."""
        place, hashes = self._requests.pop(request_id, (None, None))
        expected = self._expected.get(place) if place is not None else None
        if place is None or hashes is None or not expected:
            return
        gone = [block for block in hashes.tolist() if expected.get(block) == request_id]
        for block in gone:
            del expected[block]
        self._index.remove(place, np.array(gone, np.uint64))

    def stored(self, place: Place, hashes: Hashes) -> None:
        """Confirm blocks: they are the place's own from now on."""
        expected = self._expected.get(place)
        if expected:
            for block in hashes.tolist():
                expected.pop(block, None)

    def forget(self, place: Place) -> None:
        """Expect nothing of this place."""
        self._expected.pop(place, None)

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

    def stored(self, place: Place, hashes: Hashes) -> None:
        """Nothing is asked of the places."""

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
