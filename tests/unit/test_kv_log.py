"""The log of a KV cache: followers at any place end with what it holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kv_follower import Follower
from wire.kv_events import Cleared, Position, Removed, SnapshotPart, Stored
from worker.kv_log import KvCursor, KvLog


def filled(**limits: int) -> KvLog:
    """Five batches of one event and one block each, 11 to 15, in one chain."""
    log = KvLog(**limits)
    for block in range(11, 16):
        log.store([block], parent=0 if block == 11 else block - 1)
        log.commit(float(block))
    return log


def read(cursor: KvCursor) -> list[tuple[int, object]]:
    found: list[tuple[int, object]] = []
    while (batch := cursor.next()) is not None:
        found += [(event.id, type(event.change)) for event in batch.events]
    return found


def test_what_happens_between_two_commits_is_one_batch() -> None:
    log = KvLog(rank=3)
    log.store([1, 2], lora_name="a")
    log.store([5], parent=2, medium="CPU")
    log.remove(5)
    log.remove(2)
    log.store([7])
    log.clear()
    log.commit(1.5)
    log.commit(2.5)
    batch = log.after(0)
    assert batch is not None
    assert (batch.rank, batch.log_id, batch.happened_s) == (3, log.log_id, 1.5)
    assert [event.id for event in batch.events] == [1, 2, 3, 4, 5]
    first, second, third, _, last = (event.change for event in batch.events)
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert isinstance(third, Removed)
    assert isinstance(last, Cleared)
    assert (first.hashes.tolist(), first.parent, first.lora_name) == ([1, 2], 0, "a")
    assert (second.hashes.tolist(), second.parent, second.medium) == ([5], 2, "CPU")
    assert third.hashes.tolist() == [5, 2]
    assert (log.last_id, len(log)) == (5, 0)
    assert log.told == {"stored": 3, "removed": 1, "cleared": 1}


def test_listeners_hear_of_a_commit_that_holds_something() -> None:
    log, heard = KvLog(), []
    log.changed.add(lambda: heard.append(log.last_id))
    log.commit(0.0)
    log.store([1])
    log.commit(0.0)
    assert heard == [1]


def test_a_follower_that_knows_its_place_gets_what_came_after() -> None:
    log = filled()
    for known in range(6):
        cursor = KvCursor(log, Position(log.log_id, known))
        assert read(cursor) == [(at, Stored) for at in range(known + 1, 6)]
        log_is_quiet = cursor.next()
        assert log_is_quiet is None


@pytest.mark.parametrize(
    "place", [None, (0, 0), (1, 3), (None, 9)], ids=["newcomer", "no log", "other log", "future"]
)
def test_a_follower_of_another_place_gets_a_snapshot_and_then_events(place) -> None:
    log = filled()
    position = place and Position(log.log_id if place[0] is None else place[0], place[1])
    cursor = KvCursor(log, position)
    assert read(cursor) == [(5, SnapshotPart)]
    log.remove(15)
    log.commit(0.0)
    assert read(cursor) == [(6, Removed)]


def test_who_is_behind_what_is_kept_gets_a_snapshot() -> None:
    log = filled(max_events=2)
    assert read(KvCursor(log, Position(log.log_id, 2))) == [(5, SnapshotPart)]
    assert read(KvCursor(log, Position(log.log_id, 3))) == [(4, Stored), (5, Stored)]


def test_the_log_is_bounded_by_its_blocks_too_and_keeps_the_last_batch() -> None:
    log = filled(max_blocks=2)
    assert [log.after(at) is not None for at in range(5)] == [False, False, False, True, True]
    log.store(list(range(100, 110)))
    log.commit(0.0)
    assert [log.after(at) is not None for at in range(6)] == [False] * 5 + [True]


def test_a_follower_that_was_overtaken_gets_a_snapshot_in_the_midst() -> None:
    log = filled(max_events=3)
    cursor = KvCursor(log, Position(log.log_id, 2))
    assert cursor.next() is not None
    for block in range(20, 25):
        log.store([block])
        log.commit(0.0)
    assert read(cursor) == [(10, SnapshotPart)]


def test_a_snapshot_names_parents_before_their_children() -> None:
    log = KvLog()
    log.store([1, 2, 3])
    log.remove(1)
    log.store([1])
    log.store([4], parent=3)
    log.commit(0.0)
    batch = KvCursor(log).next()
    assert batch is not None
    (event,) = batch.events
    assert isinstance(event.change, SnapshotPart)
    assert event.change.hashes.tolist() == [1, 2, 3, 4]


def test_an_empty_log_says_so() -> None:
    log = KvLog()
    follower = Follower()
    follower.read(KvCursor(log))
    assert (follower.position, follower.blocks) == (Position(log.log_id, 0), set())
    assert log.log_id != KvLog().log_id


ACTIONS = st.one_of(
    st.tuples(st.just("store"), st.integers(1, 4), st.integers(0, 30)),
    st.tuples(st.just("remove"), st.integers(0, 30), st.just(0)),
    st.tuples(st.sampled_from(["clear", "commit", "read", "join"]), st.just(0), st.just(0)),
)


@given(st.lists(ACTIONS, max_size=80), st.integers(1, 6), st.integers(1, 12))
def test_followers_that_come_and_go_end_with_what_is_held(actions, max_events, max_blocks) -> None:
    log = KvLog(max_events=max_events, max_blocks=max_blocks)
    model: set[int] = set()
    follower, newest = Follower(), 100
    cursor = KvCursor(log)
    for kind, number, choice in actions:
        held = sorted(model)
        if kind == "store":
            blocks = list(range(newest, newest + number))
            newest += number
            log.store(blocks, parent=held[choice % len(held)] if held and choice else 0)
            model.update(blocks)
        elif kind == "remove" and held:
            log.remove(held[number % len(held)])
            model.remove(held[number % len(held)])
        elif kind == "clear":
            log.clear()
            model.clear()
        elif kind == "join":
            log.commit(0.0)
            cursor = KvCursor(log, follower.position)
        elif kind in ("commit", "read"):
            log.commit(0.0)
            follower.read(cursor, batches=1 if kind == "read" else 0)
    log.commit(0.0)
    follower.read(cursor)
    assert follower.blocks == model == set(log)
    assert follower.position == Position(log.log_id, log.last_id)


def test_a_large_snapshot_comes_in_parts() -> None:
    log = KvLog()
    log.store(list(range(1, 70_001)))
    log.commit(0.0)
    cursor = KvCursor(log)
    parts = [cursor.next(), cursor.next(), cursor.next()]
    changes = [batch.events[0].change for batch in parts if batch is not None]
    assert [(it.first, it.last) for it in changes] == [(True, False), (False, True)]  # type: ignore[union-attr]
    found = np.concatenate([it.hashes for it in changes])  # type: ignore[union-attr]
    assert found.tolist() == list(range(1, 70_001))
