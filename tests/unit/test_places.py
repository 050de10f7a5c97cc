"""Places of one model: who runs, who waits, who is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Overloaded
from server.places import Places


def places(capacity: int | None, queue_limit: int | None = 10) -> Places[str]:
    return Places(lambda: capacity, queue_limit)


def test_requests_run_until_the_capacity_is_used_and_then_wait() -> None:
    three = places(3)
    assert [three.enter(name, sequences=1, priority=0) for name in "abcd"] == [
        True, True, True, False,
    ]  # fmt: skip
    assert three.waiting == 1
    assert three.next() is None
    three.leave("b")
    assert (three.next(), three.next(), three.waiting) == ("d", None, 0)


def test_without_a_capacity_nobody_waits() -> None:
    unlimited = places(None, queue_limit=0)
    assert all(unlimited.enter(str(n), sequences=9, priority=0) for n in range(100))


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    one = places(1, queue_limit=2)
    for name in "abc":
        one.enter(name, sequences=1, priority=0)
    with pytest.raises(Overloaded):
        one.enter("d", sequences=1, priority=0)
    one.leave("a")
    assert one.next() == "b"


@pytest.mark.parametrize(("capacity", "waiting"), [(1, 1), (4, 1), (32, 8), (33, 9)])
def test_by_default_a_quarter_of_the_places_may_wait(capacity: int, waiting: int) -> None:
    some = places(capacity, queue_limit=None)
    for number in range(capacity + waiting):
        some.enter(str(number), sequences=1, priority=0)
    assert some.waiting == waiting
    with pytest.raises(Overloaded):
        some.enter("late", sequences=1, priority=0)


def test_lower_priority_numbers_go_first_and_equals_in_order_of_arrival() -> None:
    one = places(1)
    one.enter("running", sequences=1, priority=0)
    for name, priority in (("late", 5), ("first", 0), ("urgent", -1), ("second", 0)):
        one.enter(name, sequences=1, priority=priority)
    order = []
    running: str | None = "running"
    while running is not None:
        one.leave(running)
        running = one.next()
        order.append(running)
    assert order == ["urgent", "first", "second", "late", None]


def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    four = places(4)
    four.enter("a", sequences=3, priority=0)
    assert not four.enter("wide", sequences=2, priority=0)
    assert not four.enter("narrow", sequences=1, priority=0)
    four.leave("a")
    assert (four.next(), four.next()) == ("wide", "narrow")


def test_who_gives_up_waiting_is_not_started() -> None:
    one = places(1)
    for name in "abc":
        one.enter(name, sequences=1, priority=0)
    one.leave("b")
    one.leave("b")
    one.leave("a")
    assert (one.next(), one.waiting) == ("c", 0)


def test_a_request_wider_than_the_capacity_runs_alone() -> None:
    two = places(2)
    assert two.enter("wide", sequences=8, priority=0)
    assert not two.enter("next", sequences=1, priority=0)
    two.leave("wide")
    assert two.next() == "next"


def test_more_workers_are_more_places() -> None:
    workers = [1]
    growing: Places[str] = Places(lambda: len(workers), 10)
    growing.enter("a", sequences=1, priority=0)
    growing.enter("b", sequences=1, priority=0)
    workers.append(2)
    assert growing.next() == "b"


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 20)), max_size=60),
)
def test_what_runs_fits_and_nothing_is_lost(
    capacity: int, steps: list[tuple[bool, int, int]]
) -> None:
    some: Places[int] = Places(lambda: capacity, 5)
    running: dict[int, int] = {}
    waiting: dict[int, int] = {}
    for number, (arrives, sequences, pick) in enumerate(steps):
        if arrives:
            try:
                goes = some.enter(number, sequences=sequences, priority=pick)
            except Overloaded:
                assert len(waiting) == 5
                continue
            (running if goes else waiting)[number] = sequences
        elif known := [*running, *waiting]:
            gone = known[pick % len(known)]
            running.pop(gone, None)
            waiting.pop(gone, None)
            some.leave(gone)
        while (started := some.next()) is not None:
            running[started] = waiting.pop(started)
        assert some.waiting == len(waiting)
        assert sum(running.values()) <= capacity or len(running) == 1
        assert running or not waiting


def test_those_who_gave_up_are_not_kept_behind_a_head_that_cannot_start() -> None:
    narrow = places(2, queue_limit=3)
    narrow.enter("running", sequences=2, priority=0)
    narrow.enter("head", sequences=2, priority=0)
    for number in range(1000):
        narrow.enter(f"gone-{number}", sequences=1, priority=0)
        narrow.leave(f"gone-{number}")
    assert len(narrow._order) < 40
    narrow.leave("running")
    assert (narrow.next(), narrow.next(), narrow.waiting) == ("head", None, 0)
