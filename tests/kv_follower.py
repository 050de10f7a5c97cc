"""A follower of KV events as simple as can be: what a correct one ends with."""

from wire.kv_events import Cleared, KvBatch, Position, Removed, SnapshotPart, Stored
from worker.kv_log import KvCursor


class Follower:
    """One rank's blocks; it insists on ids without gaps and on blocks stored and removed once.

    `position` is what it would resume from: within a snapshot that is not complete, none.
    """

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.position: Position | None = None
        self.snapshots = 0

    def read(self, cursor: KvCursor, batches: int = 0) -> None:
        """Take all that there is, or at most some batches."""
        while (batch := cursor.next()) is not None:
            self.take(batch)
            batches -= 1
            if not batches:
                return

    def take(self, batch: KvBatch) -> None:
        for event in batch.events:
            change = event.change
            if isinstance(change, SnapshotPart):
                self._take_part(Position(batch.log_id, event.id), change)
                continue
            assert self.position == Position(batch.log_id, event.id - 1)
            self.position = Position(batch.log_id, event.id)
            if isinstance(change, Cleared):
                self.blocks.clear()
                continue
            hashes = set(change.hashes.tolist())
            assert len(hashes) == len(change.hashes) > 0
            if isinstance(change, Stored):
                assert not hashes & self.blocks
                self.blocks |= hashes
            elif isinstance(change, Removed):
                assert hashes <= self.blocks
                self.blocks -= hashes

    def _take_part(self, position: Position, part: SnapshotPart) -> None:
        if part.first:
            self.blocks.clear()
            self.snapshots += 1
        hashes = set(part.hashes.tolist())
        assert not hashes & self.blocks
        self.blocks |= hashes
        self.position = position if part.last else None
