"""Sessions stay where they are: in every policy, for as long as their place may be chosen."""

from typing import Any

import pytest

from router.affinity import Affinity
from router.policies import make_router
from router.router import (
    BusyThresholds,
    Choice,
    Place,
    Router,
    RouteRequest,
    WorkerJoined,
    WorkerLeft,
    WorkerStalled,
)
from router.settings import POLICIES, RouterSettings
from runtime.errors import InvalidConfig

TTL_S = 10.0
every_policy = pytest.mark.parametrize("policy", POLICIES)


def router(policy: str, *workers: str, ranks: int = 1, **settings: Any) -> Router:
    made = make_router(RouterSettings(policy=policy, seed=1, session_ttl_s=TTL_S, **settings))
    for worker in workers:
        made.observe(WorkerJoined(worker, ranks, kv_blocks=100, block_size=16))
    return made


def turn(
    made: Router, session: str | None = "s", now: float = 0.0, tokens: int = 32, **fields: Any
) -> Place:
    """Route one request and finish it."""
    asked = RouteRequest(
        request_id="r", token_ids=list(range(tokens)), session_id=session, **fields
    )
    choice = made.choose(asked, now)
    assert choice is not None
    made.started(asked, choice, now)
    made.finished("r", now)
    return Place(choice.worker_id, choice.rank)


def occupy(made: Router, place: Place, request_id: str = "big", tokens: int = 1600) -> None:
    asked = RouteRequest(request_id=request_id, token_ids=list(range(9, 9 + tokens)))
    made.started(asked, Choice(worker_id=place.worker_id, rank=place.rank), 0.0)


@every_policy
def test_a_session_stays_at_its_rank_whatever_the_load(policy) -> None:
    made = router(policy, "a", "b", "c", ranks=2)
    home = turn(made)
    occupy(made, home)
    assert {turn(made) for _ in range(30)} == {home}


@every_policy
def test_requests_without_a_session_are_spread_as_ever(policy) -> None:
    made = router(policy, "a", "b")
    home = turn(made)
    occupy(made, home)
    others = {turn(made, session=None, tokens=16 * index) for index in range(20, 60)}
    assert others - {home}


@every_policy
def test_a_session_is_forgotten_after_its_idle_time(policy) -> None:
    made = router(policy, "a", "b")
    made.observe(WorkerStalled("b", True))
    assert turn(made).worker_id == "a"
    made.observe(WorkerStalled("b", False))
    assert {turn(made, now=at).worker_id for at in (5.0, 14.0, 23.0)} == {"a"}
    occupy(made, Place("a"))
    # Nobody has used it for longer than the time to live.
    later = {turn(made, now=33.0 + 20 * at, tokens=16 + 16 * at).worker_id for at in range(30)}
    assert "b" in later


@every_policy
def test_the_last_request_of_a_session_ends_it(policy) -> None:
    made = router(policy, "a", "b")
    made.observe(WorkerStalled("b", True))
    turn(made)
    made.observe(WorkerStalled("b", False))
    assert turn(made, session_ends=True).worker_id == "a"
    occupy(made, Place("a"))
    ends = {turn(made, tokens=16 + 16 * at, session_ends=True).worker_id for at in range(30)}
    assert "b" in ends


@every_policy
def test_a_pinned_or_excluded_worker_wins_over_the_session_and_moves_it(policy) -> None:
    made = router(policy, "a", "b")
    home = turn(made)
    other = "b" if home.worker_id == "a" else "a"
    assert turn(made, pinned=other).worker_id == other
    assert {turn(made).worker_id for _ in range(20)} == {other}
    assert turn(made, exclude=frozenset({other})) == home
    assert {turn(made) for _ in range(20)} == {home}


@every_policy
def test_a_session_leaves_a_busy_a_stalled_and_a_lost_worker(policy) -> None:
    made = router(policy, "a", "b", thresholds=BusyThresholds(active_prefill_tokens=100))
    home = turn(made)
    occupy(made, home)
    away = turn(made)
    assert away != home
    made.finished("big", 0.0)
    made.observe(WorkerStalled(away.worker_id, True))
    assert turn(made) == home
    made.observe(WorkerLeft(home.worker_id))
    assert turn(made) == away


@every_policy
def test_a_dry_run_names_the_sessions_place_and_changes_nothing(policy) -> None:
    made = router(policy, "a", "b")
    home = turn(made)
    occupy(made, home)
    asked = RouteRequest(request_id="", token_ids=[1] * 32, session_id="s")
    best, other = made.explain(asked, TTL_S / 2)
    assert best.place == home
    assert other.place != home
    # Looking did not make it live longer.
    assert made.explain(asked, TTL_S + 1)[0].cost <= made.explain(asked, TTL_S + 1)[1].cost


def test_without_a_time_to_live_nothing_is_remembered() -> None:
    affinity = Affinity(0.0)
    asked = RouteRequest(request_id="r", token_ids=[1], session_id="s")
    affinity.started(asked, Place("a"), 0.0)
    assert affinity.place_of(asked, 0.0) is None
    assert len(affinity) == 0


def test_sessions_are_bounded_and_the_one_unused_for_longest_goes() -> None:
    affinity = Affinity(TTL_S, max_sessions=3)
    asked = {name: RouteRequest(request_id="r", token_ids=[1], session_id=name) for name in "abcd"}
    for name in "abcad":
        affinity.started(asked[name], Place("w"), 0.0)
    assert len(affinity) == 3
    assert affinity.place_of(asked["b"], 0.0) is None
    assert affinity.place_of(asked["a"], 0.0) == Place("w")
    affinity.started(asked["a"], Place("w"), TTL_S + 1)
    assert len(affinity) == 1


def test_a_negative_time_to_live_is_a_configuration_error() -> None:
    with pytest.raises(InvalidConfig, match="session_ttl_s"):
        RouterSettings(session_ttl_s=-1.0)
