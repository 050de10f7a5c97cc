"""Events of a worker's KV cache, in our own prefix hashes, as `WatchKvEvents` carries them.

A worker's log of one data-parallel rank numbers its events without gaps. Blocks are members of a
set here: the worker counts physical copies, so that a hash is stored once and removed once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from runtime.errors import InternalError
from wire.block_hash import NO_HASHES, Hashes, pack_hashes, unpack_hashes
from wire.penstock_pb2 import KvEvent as KvEventMessage
from wire.penstock_pb2 import KvEventBatch, KvPosition, WatchKvEventsRequest


class Stored(NamedTuple):
    """Blocks that follow the prefix `parent`, and each other, are held from now on."""

    hashes: Hashes
    parent: int = 0
    lora_name: str = ""
    medium: str = ""


class Removed(NamedTuple):
    """Blocks that are held no more."""

    hashes: Hashes
    medium: str = ""


class Cleared(NamedTuple):
    """No block is held any more."""


class SnapshotPart(NamedTuple):
    """A part of all blocks held: the `first` replaces what was known, with the `last` it is all."""

    hashes: Hashes
    first: bool = True
    last: bool = True


KvChange: TypeAlias = Stored | Removed | Cleared | SnapshotPart


class KvEvent(NamedTuple):
    """A numbered change."""

    id: int
    change: KvChange


class KvBatch(NamedTuple):
    """Events of one rank's log, in order. `happened_s` since the Unix epoch; 0 is unknown."""

    rank: int
    log_id: int
    events: Sequence[KvEvent]
    happened_s: float = 0.0


class Position(NamedTuple):
    """The last event that a follower has of one rank's log."""

    log_id: int
    event_id: int


def encode_batch(batch: KvBatch) -> KvEventBatch:
    """Write a batch as a message."""
    message = KvEventBatch(
        data_parallel_rank=batch.rank, log_id=batch.log_id, happened_s=batch.happened_s
    )
    for event in batch.events:
        _write(message.events.add(id=event.id), event.change)
    return message


def _write(message: KvEventMessage, change: KvChange) -> None:
    match change:
        case Stored(hashes, parent, lora_name, medium):
            message.stored.hashes = pack_hashes(hashes)
            message.stored.parent = parent
            message.stored.lora_name = lora_name
            message.stored.medium = medium
        case Removed(hashes, medium):
            message.removed.hashes = pack_hashes(hashes)
            message.removed.medium = medium
        case Cleared():
            message.cleared.SetInParent()
        case SnapshotPart(hashes, first, last):
            message.snapshot.hashes = pack_hashes(hashes)
            message.snapshot.first = first
            message.snapshot.last = last


def decode_batch(message: KvEventBatch) -> KvBatch:
    """Read a batch; raises InternalError when it is malformed."""
    try:
        events = [KvEvent(event.id, _read(event)) for event in message.events]
    except ValueError as error:
        raise InternalError(f"malformed KV event: {error}") from error
    return KvBatch(message.data_parallel_rank, message.log_id, events, message.happened_s)


def _read(event: KvEventMessage) -> KvChange:
    match event.WhichOneof("event"):
        case "stored":
            it = event.stored
            return Stored(unpack_hashes(it.hashes), it.parent, it.lora_name, it.medium)
        case "removed":
            return Removed(unpack_hashes(event.removed.hashes), event.removed.medium)
        case "cleared":
            return Cleared()
        case "snapshot":
            part = event.snapshot
            return SnapshotPart(unpack_hashes(part.hashes), part.first, part.last)
        case other:
            raise ValueError(f"unknown event {other}")


def watch_request(positions: dict[int, Position]) -> WatchKvEventsRequest:
    """Ask for what happened after `positions`, by rank."""
    return WatchKvEventsRequest(
        since=[
            KvPosition(data_parallel_rank=rank, log_id=at.log_id, event_id=at.event_id)
            for rank, at in positions.items()
        ]
    )


def read_positions(message: WatchKvEventsRequest) -> dict[int, Position]:
    """Return where the caller stands, by rank."""
    return {it.data_parallel_rank: Position(it.log_id, it.event_id) for it in message.since}


def snapshot_parts(hashes: Hashes, part_blocks: int = 65_536) -> Iterable[SnapshotPart]:
    """Cut a snapshot so that no message grows beyond half a megabyte; at least one part."""
    starts = range(0, max(1, len(hashes)), part_blocks)
    for start in starts:
        yield SnapshotPart(
            hashes[start : start + part_blocks] if len(hashes) else NO_HASHES,
            first=start == starts[0],
            last=start == starts[-1],
        )
