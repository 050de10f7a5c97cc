"""Routing policies."""

import pytest

from router.policies import POLICIES, Random, RoundRobin
from router.router import Router, RouteRequest, WorkerJoined, WorkerLeft


def with_workers(router: Router, *names: str) -> Router:
    for name in names:
        router.observe(WorkerJoined(name))
    return router


def chosen(router: Router, request: RouteRequest) -> str | None:
    choice = router.choose(request, 0.0)
    return None if choice is None else choice.worker_id


def request(**fields: object) -> RouteRequest:
    return RouteRequest(request_id="r", token_ids=[1, 2], **fields)  # type: ignore[arg-type]


def test_round_robin_takes_each_worker_in_turn() -> None:
    router = with_workers(RoundRobin(), "a", "b", "c")
    assert [chosen(router, request()) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_random_reaches_every_worker_and_repeats_with_its_seed() -> None:
    runs = [
        [chosen(with_workers(router, "a", "b", "c"), request()) for _ in range(60)]
        for router in (Random(seed=7), Random(seed=7))
    ]
    assert set(runs[0]) == {"a", "b", "c"}
    assert runs[0] == runs[1]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_worker_means_no_choice(policy: str) -> None:
    assert chosen(POLICIES[policy](), request()) is None


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_worker_that_left_is_not_chosen(policy: str) -> None:
    router = with_workers(POLICIES[policy](), "a", "b")
    router.observe(WorkerLeft("a"))
    router.observe(WorkerLeft("never-there"))
    assert {chosen(router, request()) for _ in range(10)} == {"b"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_pinned_worker_is_chosen_or_none(policy: str) -> None:
    router = with_workers(POLICIES[policy](), "a", "b")
    assert {chosen(router, request(pinned="b")) for _ in range(10)} == {"b"}
    assert chosen(router, request(pinned="gone")) is None


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_excluded_workers_are_skipped_and_the_others_are_candidates(policy: str) -> None:
    router = with_workers(POLICIES[policy](), "a", "b", "c")
    without_a = request(exclude=frozenset({"a"}))
    assert {chosen(router, without_a) for _ in range(50)} == {"b", "c"}
    assert {it.place.worker_id for it in router.explain(without_a, 0.0)} == {"b", "c"}
