"""When a worker counts as stalled."""

from server.progress import ProgressWatch


def look(watch: ProgressWatch, now: float, progress: object, **seen: object) -> bool:
    fields = {"running": 1, "says_stalled": False} | seen
    return watch.look(now, progress=progress, **fields)  # type: ignore[arg-type]


def test_a_worker_with_requests_that_stands_still_is_stalled_until_it_moves() -> None:
    watch = ProgressWatch(5.0)
    assert not look(watch, 0.0, 1)
    assert not look(watch, 5.0, 1)
    assert look(watch, 5.1, 1)
    assert watch.stalled
    assert not look(watch, 9.0, 1)
    assert look(watch, 9.5, 2)
    assert not watch.stalled


def test_an_idle_worker_is_never_stalled_and_time_counts_from_its_first_request() -> None:
    watch = ProgressWatch(5.0)
    for now in range(0, 100, 10):
        assert not look(watch, now, 1, running=0)
    assert not look(watch, 94.0, 1)
    assert look(watch, 95.1, 1)
    assert look(watch, 96.0, 1, running=0)
    assert not watch.stalled


def test_a_worker_that_says_so_is_stalled_at_once() -> None:
    watch = ProgressWatch(5.0)
    assert look(watch, 0.0, 1, says_stalled=True)
    assert watch.stalled
    assert look(watch, 0.5, 2)
    assert not watch.stalled


def test_without_a_limit_nobody_is_late() -> None:
    watch = ProgressWatch(0.0)
    assert not look(watch, 0.0, 1)
    assert not look(watch, 1e6, 1)
