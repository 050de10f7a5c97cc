"""Events of a worker's KV cache, in our own prefix hashes, as `WatchKvEvents` carries them.

A worker's log of one data-parallel rank numbers its events without gaps. Blocks are members of a
set here: the worker counts physical copies, so that a hash is stored once and removed once.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from runtime.errors import InternalError
from wire.block_hash import NO_HASHES, Hashes, pack_hashes, unpack_hashes
from wire.penstock_pb2 import (
    KV_CLEARED,
    KV_REMOVED,
    KV_STORED,
    KvEventBatch,
    KvPosition,
    WatchKvEventsRequest,
)


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
_KINDS: dict[type, int] = {Stored: KV_STORED, Removed: KV_REMOVED, Cleared: KV_CLEARED}


class KvEvent(NamedTuple):
    """A numbered change."""

    id: int
    change: KvChange


class KvBatch(NamedTuple):
    """Events of one rank's log, in order, at least one; a part of a snapshot is alone.

    `happened_s` since the Unix epoch; 0 is unknown.
    """

    rank: int
    log_id: int
    events: Sequence[KvEvent]
    happened_s: float = 0.0


class Position(NamedTuple):
    """The last event that a follower has of one rank's log."""

    log_id: int
    event_id: int


def encode_batch(batch: KvBatch) -> KvEventBatch:
    """Write a batch as a message: events, or one part of a snapshot."""
    message = KvEventBatch(
        data_parallel_rank=batch.rank,
        log_id=batch.log_id,
        first_id=batch.events[0].id,
        happened_s=batch.happened_s,
    )
    first = batch.events[0].change
    if isinstance(first, SnapshotPart):
        message.snapshot.hashes = pack_hashes(first.hashes)
        message.snapshot.first, message.snapshot.last = first.first, first.last
        return message
    changes = [event.change for event in batch.events]
    hashes = [NO_HASHES if isinstance(it, Cleared) else it.hashes for it in changes]
    message.kinds = bytes(_KINDS[type(it)] for it in changes)
    message.counts.extend(map(len, hashes))
    message.hashes = pack_hashes(np.concatenate(hashes))
    parents = [it.parent if isinstance(it, Stored) else 0 for it in changes]
    message.parents = pack_hashes(np.array(parents, np.uint64))
    for at, change in enumerate(changes):
        medium = change.medium if isinstance(change, Stored | Removed) else ""
        lora_name = change.lora_name if isinstance(change, Stored) else ""
        if medium or lora_name:
            message.labels.add(event=at, lora_name=lora_name, medium=medium)
    return message


def decode_batch(message: KvEventBatch) -> KvBatch:
    """Read a batch; raises InternalError when it is malformed."""
    try:
        events = list(_read_events(message))
    except ValueError as error:
        raise InternalError(f"malformed KV events: {error}") from error
    return KvBatch(message.data_parallel_rank, message.log_id, events, message.happened_s)


def _read_events(message: KvEventBatch) -> Iterator[KvEvent]:
    if message.HasField("snapshot"):
        part = message.snapshot
        change: KvChange = SnapshotPart(unpack_hashes(part.hashes), part.first, part.last)
        yield KvEvent(message.first_id, change)
        return
    labels = {it.event: (it.lora_name, it.medium) for it in message.labels}
    hashes, parents = unpack_hashes(message.hashes), unpack_hashes(message.parents).tolist()
    ends = np.cumsum(message.counts, dtype=np.int64).tolist()
    _check_columns(message, hashes)
    start = 0
    for at, (kind, parent, end) in enumerate(zip(message.kinds, parents, ends, strict=True)):
        lora_name, medium = labels.get(at, ("", ""))
        match kind:
            case 0:
                change = Stored(hashes[start:end], parent, lora_name, medium)
            case 1:
                change = Removed(hashes[start:end], medium)
            case _:
                change = Cleared()
        yield KvEvent(message.first_id + at, change)
        start = end


class KvRuns(NamedTuple):
    """A batch without what only single events have: neighbours of one kind are one change.

    `last_id` is the id of its last event, `events` how many there are.
    """

    rank: int
    log_id: int
    first_id: int
    last_id: int
    changes: Sequence[KvChange]
    happened_s: float
    events: int


def decode_runs(message: KvEventBatch) -> KvRuns:
    """Read a batch for a follower of sets; raises InternalError when it is malformed.

    Costs a few microseconds a batch, whatever its events are.
    """
    if message.HasField("snapshot"):
        count, changes = 1, [event.change for event in decode_batch(message).events]
    else:
        count = len(message.kinds)
        try:
            changes = list(_read_runs(message))
        except ValueError as error:
            raise InternalError(f"malformed KV events: {error}") from error
    first = message.first_id
    last = first + max(0, count - 1)
    rank, log_id = message.data_parallel_rank, message.log_id
    return KvRuns(rank, log_id, first, last, changes, message.happened_s, count)


def _read_runs(message: KvEventBatch) -> Iterator[KvChange]:
    hashes = unpack_hashes(message.hashes)
    _check_columns(message, hashes)
    if message.kinds.count(message.kinds[0]) == len(message.kinds):
        yield _run(message.kinds[0], hashes)
        return
    kinds = np.frombuffer(message.kinds, np.uint8)
    bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    ends = np.cumsum(message.counts, dtype=np.int64)
    start = 0
    for first, behind in pairwise(bounds):
        end = int(ends[behind - 1])
        yield _run(int(kinds[first]), hashes[start:end])
        start = end


def _run(kind: int, hashes: Hashes) -> KvChange:
    if kind == KV_STORED:
        return Stored(hashes)
    return Removed(hashes) if kind == KV_REMOVED else Cleared()


def _check_columns(message: KvEventBatch, hashes: Hashes) -> None:
    if not len(message.kinds) or len(message.kinds) != len(message.counts):
        raise ValueError(f"{len(message.kinds)} kinds for {len(message.counts)} counts")
    if sum(message.counts) != len(hashes):
        raise ValueError(f"{len(hashes)} hashes where counts add up to {sum(message.counts)}")
    if max(message.kinds) > KV_CLEARED:
        raise ValueError(f"unknown kind of event {max(message.kinds)}")


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
