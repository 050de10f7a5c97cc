"""What one data-parallel rank's KV cache holds, as a log that followers read at their own pace.

Followers keep nothing here but their position: who is too slow for the part of the log that is
kept gets all blocks anew. Pure: knows neither an engine nor a transport.
"""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from wire.kv_events import (
    Cleared,
    KvBatch,
    KvChange,
    KvEvent,
    Position,
    Removed,
    SnapshotPart,
    Stored,
    snapshot_parts,
)
from worker.listeners import Listeners

# Minutes of a busy engine. Blocks take 8 bytes each here, an event some 400.
MAX_EVENTS = 16_384
MAX_BLOCKS = 262_144


class KvLog:
    """Numbered events without gaps, and the set of blocks that they lead to.

    `store`, `remove` and `clear` change the set at once; `commit` then makes one batch of what
    changed since the last one and tells `changed`. Between them nobody may read. Blocks are
    prefix hashes of wire/block_hash.py; each is stored once and removed once, which its writer
    sees to. The log keeps the last `max_events` events, and fewer when they hold more than
    `max_blocks` blocks; the last batch is always kept.

    `told` counts events by type, `ignored` blocks that its writer could not take over by reason,
    `gaps` the places where events of the engine were missing by outcome.
    """

    def __init__(
        self, rank: int = 0, *, max_events: int = MAX_EVENTS, max_blocks: int = MAX_BLOCKS
    ) -> None:
        self.rank = rank
        # 0 is what a position without a log says.
        self.log_id = secrets.randbits(64) or 1
        self.last_id = 0
        self.changed = Listeners()
        self.told: Counter[str] = Counter(stored=0, removed=0, cleared=0)
        self.ignored: Counter[str] = Counter(parent=0, size=0, group=0, private=0)
        self.gaps: Counter[str] = Counter(replayed=0, lost=0, unreadable=0)
        self._max_events, self._max_blocks = max_events, max_blocks
        self._depths: dict[int, int] = {}
        self._pending: list[Stored | Cleared | list[int]] = []
        self._pending_blocks = 0
        # Batches and how many blocks they hold, by the id of their first event.
        self._batches: OrderedDict[int, tuple[KvBatch, int]] = OrderedDict()
        self._kept_blocks = 0

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._depths)

    def __contains__(self, prefix: object) -> bool:
        """Whether the block is held."""
        return prefix in self._depths

    def __iter__(self) -> Iterator[int]:
        """Yield all blocks held, in no order that means anything."""
        return iter(self._depths)

    def depth(self, prefix: int) -> int:
        """Return how many blocks stand before a held block; raises KeyError."""
        return self._depths[prefix]

    def store(
        self, prefixes: Sequence[int], parent: int = 0, lora_name: str = "", medium: str = ""
    ) -> None:
        """Hold blocks that follow `parent`, which is held or 0 at a prompt's begin."""
        start = self._depths[parent] + 1 if parent else 0
        self._depths.update(zip(prefixes, range(start, start + len(prefixes)), strict=True))
        hashes = np.array(prefixes, np.uint64)
        self._pending.append(Stored(hashes, parent, lora_name, medium))
        self._pending_blocks += len(prefixes)
        self.told["stored"] += 1

    def remove(self, prefix: int) -> None:
        """Hold a block no more; what is removed in a row becomes one event."""
        del self._depths[prefix]
        self._pending_blocks += 1
        last = self._pending[-1] if self._pending else None
        if isinstance(last, list):
            last.append(prefix)
        else:
            self._pending.append([prefix])
            self.told["removed"] += 1

    def clear(self) -> None:
        """Hold nothing any more."""
        self._depths.clear()
        self._pending.append(Cleared())
        self.told["cleared"] += 1

    def commit(self, happened_s: float) -> None:
        """Make one batch of what changed; `happened_s` in seconds since the Unix epoch."""
        if not self._pending:
            return
        first = self.last_id + 1
        events = [KvEvent(at, _change(it)) for at, it in enumerate(self._pending, first)]
        batch = KvBatch(self.rank, self.log_id, events, happened_s)
        self._batches[first] = batch, self._pending_blocks
        self.last_id = events[-1].id
        self._kept_blocks += self._pending_blocks
        self._pending.clear()
        self._pending_blocks = 0
        self._forget()
        self.changed.tell()

    def after(self, event_id: int) -> KvBatch | None:
        """Return the batch that follows an event; None where no kept one begins there."""
        kept = self._batches.get(event_id + 1)
        return None if kept is None else kept[0]

    def snapshot(self) -> Iterator[SnapshotPart]:
        """Return all blocks held at this moment, parents before their children."""
        count = len(self._depths)
        hashes = np.fromiter(self._depths, np.uint64, count)
        depths = np.fromiter(self._depths.values(), np.int64, count)
        # In the order of their storing a parent may follow its child: it was evicted first.
        return iter(snapshot_parts(hashes[np.argsort(depths, kind="stable")]))

    def _forget(self) -> None:
        """Drop the oldest batches that are over the limits."""
        while len(self._batches) > 1 and (
            self.last_id - next(iter(self._batches)) >= self._max_events
            or self._kept_blocks > self._max_blocks
        ):
            _, (_, blocks) = self._batches.popitem(last=False)
            self._kept_blocks -= blocks


def _change(pending: Stored | Cleared | list[int]) -> KvChange:
    return Removed(np.array(pending, np.uint64)) if isinstance(pending, list) else pending


class KvCursor:
    """Where one follower of a log stands: what it reads next, a batch at a time.

    It begins after `position`, or with a snapshot where the log cannot go on from there: for a
    newcomer (None), after a position of another log, or one that is no longer kept.
    """

    def __init__(self, log: KvLog, position: Position | None = None) -> None:
        self._log = log
        known = position is not None and position.log_id == log.log_id
        self._event_id = position.event_id if position is not None and known else None
        self._parts: Iterator[SnapshotPart] | None = None

    def next(self) -> KvBatch | None:
        """Return the next batch, None when the follower has everything."""
        if self._parts is None:
            if self._event_id == self._log.last_id:
                return None
            batch = None if self._event_id is None else self._log.after(self._event_id)
            if batch is not None:
                self._event_id = batch.events[-1].id
                return batch
            self._event_id = self._log.last_id
            self._parts = self._log.snapshot()
        part = next(self._parts)
        if part.last:
            self._parts = None
        assert self._event_id is not None
        event = KvEvent(self._event_id, part)
        return KvBatch(self._log.rank, self._log.log_id, [event])
