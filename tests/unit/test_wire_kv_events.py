"""The wire form of KV cache events."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    decode_runs,
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


def sent(events: list[KvEvent], **fields: Any) -> KvEventBatch:
    batch = KvBatch(3, 2**64 - 1, events, **fields)
    return KvEventBatch.FromString(encode_batch(batch).SerializeToString())


def numbered(changes: Sequence[KvChange], first: int = 5) -> list[KvEvent]:
    return [KvEvent(first + at, change) for at, change in enumerate(changes)]


def test_every_event_survives_the_wire() -> None:
    changes: list[KvChange] = [
        Stored(hashes(2**64 - 1, 0), parent=2**64 - 1, lora_name="a", medium="CPU"),
        Removed(hashes(1), medium="CPU"),
        Stored(hashes(7)),
        Cleared(),
    ]
    got = decode_batch(sent(numbered(changes), happened_s=1.5))
    assert (got.rank, got.log_id, got.happened_s) == (3, 2**64 - 1, 1.5)
    assert [event.id for event in got.events] == [5, 6, 7, 8]
    for event, change in zip(got.events, changes, strict=True):
        assert type(event.change) is type(change)
        assert plain(event.change) == plain(change)


def test_a_part_of_a_snapshot_survives_the_wire() -> None:
    part = SnapshotPart(hashes(3, 4), first=True, last=False)
    message = sent([KvEvent(9, part)])
    (event,) = decode_batch(message).events
    assert event.id == 9
    assert plain(event.change) == plain(part)
    runs = decode_runs(message)
    assert (runs.first_id, runs.last_id, runs.events) == (9, 9, 1)
    assert plain(runs.changes[0]) == plain(part)


BLOCKS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4).map(lambda it: hashes(*it))
CHANGES = st.lists(
    st.one_of(BLOCKS.map(Stored), BLOCKS.map(Removed), st.just(Cleared())), min_size=1
)


@given(CHANGES)
def test_runs_say_what_the_single_events_say(changes: list[KvChange]) -> None:
    runs = decode_runs(sent(numbered(changes)))
    assert (runs.first_id, runs.last_id) == (5, 5 + len(changes) - 1)
    assert runs.events == len(changes)
    assert told(runs.changes) == told(changes)
    assert all(type(one) is not type(other) for one, other in pairwise(runs.changes))


def told(changes: Sequence[KvChange]) -> list[tuple[str, int]]:
    """What happens to which block in turn; clearing twice is clearing once."""
    single: list[tuple[str, int]] = []
    for change in changes:
        blocks = [0] if isinstance(change, Cleared) else change.hashes.tolist()
        single += [(type(change).__name__, block) for block in blocks]
    return [
        it for at, it in enumerate(single) if it != ("Cleared", 0) or single[at - 1] != it or not at
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {"hashes": b"123"},
        {"hashes": bytes(16)},
        {"counts": [1, 1]},
        {"counts": [], "hashes": b""},
        {"kinds": b""},
        {"kinds": b"\3"},
    ],
)
def test_columns_that_do_not_fit_are_an_error(broken: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "kinds": b"\0",
        "counts": [1],
        "hashes": bytes(8),
        "parents": bytes(8),
    }
    decode_batch(KvEventBatch(**fields))
    for decode in (decode_batch, decode_runs):
        with pytest.raises(InternalError):
            decode(KvEventBatch(**fields | broken))


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
