"""The wire form of KV cache events."""

import numpy as np
import pytest

from runtime.errors import InternalError
from wire.kv_events import (
    Cleared,
    KvBatch,
    KvChange,
    KvEvent,
    Position,
    Removed,
    SnapshotPart,
    Stored,
    decode_batch,
    encode_batch,
    read_positions,
    snapshot_parts,
    watch_request,
)
from wire.penstock_pb2 import KvEventBatch, WatchKvEventsRequest


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def plain(change: object) -> object:
    """With lists for arrays, which do not compare."""
    return tuple(it.tolist() if isinstance(it, np.ndarray) else it for it in change)  # type: ignore[attr-defined]


def test_every_change_survives_the_wire() -> None:
    changes: list[KvChange] = [
        Stored(hashes(2**64 - 1, 0), parent=7, lora_name="a", medium="CPU"),
        Removed(hashes(1), medium="CPU"),
        Cleared(),
        SnapshotPart(hashes(3, 4), first=True, last=False),
    ]
    events = [KvEvent(5 + at, change) for at, change in enumerate(changes)]
    sent = encode_batch(KvBatch(3, 2**64 - 1, events, happened_s=1.5)).SerializeToString()
    got = decode_batch(KvEventBatch.FromString(sent))
    assert (got.rank, got.log_id, got.happened_s) == (3, 2**64 - 1, 1.5)
    assert [event.id for event in got.events] == [5, 6, 7, 8]
    for event, change in zip(got.events, changes, strict=True):
        assert type(event.change) is type(change)
        assert plain(event.change) == plain(change)


def test_a_broken_length_or_an_unknown_change_is_an_error() -> None:
    bad = KvEventBatch()
    bad.events.add(id=1).stored.hashes = b"123"
    for message in (bad, KvEventBatch(events=[{"id": 1}])):
        with pytest.raises(InternalError):
            decode_batch(message)


def test_positions_survive_the_wire() -> None:
    positions = {0: Position(2**64 - 1, 9), 3: Position(1, 0)}
    sent = watch_request(positions).SerializeToString()
    assert read_positions(WatchKvEventsRequest.FromString(sent)) == positions


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8])
def test_the_parts_of_a_snapshot_are_the_whole(count: int) -> None:
    parts = list(snapshot_parts(hashes(*range(count)), part_blocks=4))
    assert [it for part in parts for it in part.hashes.tolist()] == list(range(count))
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
