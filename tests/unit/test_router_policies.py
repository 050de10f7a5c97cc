"""What all policies have in common, and those that know nothing of prompts."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policies import make_router
from router.router import (
    Active,
    BusyThresholds,
    Choice,
    LoadReported,
    PeerLoad,
    Place,
    Router,
    RouteRequest,
    WorkerJoined,
    WorkerLeft,
    WorkerStalled,
)
from router.settings import POLICIES, RouterSettings
from runtime.errors import InvalidConfig, Overloaded

every_policy = pytest.mark.parametrize("policy", POLICIES)


def router(policy: str, *workers: str, ranks: int = 1, **settings: Any) -> Router:
    made = make_router(RouterSettings(policy=policy, seed=1, **settings))
    for worker in workers:
        made.observe(WorkerJoined(worker, ranks, kv_blocks=100, block_size=16))
    return made


def request(request_id: str = "r", tokens: int = 32, **fields: Any) -> RouteRequest:
    return RouteRequest(request_id=request_id, token_ids=list(range(tokens)), **fields)


def chosen(made: Router, asked: RouteRequest) -> Place | None:
    choice = made.choose(asked, 0.0)
    return None if choice is None else Place(choice.worker_id, choice.rank)


def start(made: Router, asked: RouteRequest, worker: str, rank: int = 0) -> None:
    made.started(asked, Choice(worker_id=worker, rank=rank), 0.0)


def workers_of(made: Router, asked: RouteRequest, times: int = 60) -> set[str]:
    places = [chosen(made, asked) for _ in range(times)]
    return {place.worker_id for place in places if place is not None}


@every_policy
def test_no_worker_means_no_choice(policy) -> None:
    assert chosen(router(policy), request()) is None
    assert router(policy).explain(request(), 0.0) == []


@every_policy
def test_a_worker_that_left_is_not_chosen(policy) -> None:
    made = router(policy, "a", "b")
    made.observe(WorkerLeft("a"))
    made.observe(WorkerLeft("never-there"))
    assert workers_of(made, request()) == {"b"}


@every_policy
def test_a_pinned_worker_is_chosen_or_none(policy) -> None:
    made = router(policy, "a", "b")
    assert workers_of(made, request(pinned="b")) == {"b"}
    assert chosen(made, request(pinned="gone")) is None


@every_policy
def test_a_pinned_rank_is_chosen_or_none(policy) -> None:
    made = router(policy, "a", "b", ranks=2)
    assert {chosen(made, request(pinned="b", pinned_rank=1)) for _ in range(20)} == {Place("b", 1)}
    ranks = {chosen(made, request(pinned_rank=1)) for _ in range(40)}
    assert ranks == {Place("a", 1), Place("b", 1)}
    assert chosen(made, request(pinned="b", pinned_rank=2)) is None


@every_policy
def test_every_rank_of_every_worker_is_chosen(policy) -> None:
    made = router(policy, "a", "b", ranks=2)
    places = {chosen(made, request()) for _ in range(80)}
    assert places == {Place(name, rank) for name in "ab" for rank in (0, 1)}


@every_policy
def test_excluded_workers_are_skipped_and_the_others_are_candidates(policy) -> None:
    made = router(policy, "a", "b", "c")
    without_a = request(exclude=frozenset({"a"}))
    assert workers_of(made, without_a) == {"b", "c"}
    assert {it.place.worker_id for it in made.explain(without_a, 0.0)} == {"b", "c"}
    assert chosen(made, request(pinned="a", exclude=frozenset({"a"}))) is None


@every_policy
def test_a_stalled_worker_is_chosen_only_when_all_are(policy) -> None:
    made = router(policy, "a", "b")
    made.observe(WorkerStalled("a", True))
    assert workers_of(made, request()) == {"b"}
    assert workers_of(made, request(pinned="a")) == {"a"}
    assert workers_of(made, request(exclude=frozenset({"b"}))) == {"a"}
    made.observe(WorkerStalled("b", True))
    assert workers_of(made, request()) == {"a", "b"}
    made.observe(WorkerStalled("a", False))
    assert workers_of(made, request()) == {"a"}


@every_policy
def test_a_worker_that_joins_again_is_stalled_no_more(policy) -> None:
    made = router(policy, "a", "b")
    made.observe(WorkerStalled("a", True))
    made.observe(WorkerJoined("a", block_size=16))
    assert workers_of(made, request()) == {"a", "b"}


@every_policy
def test_busy_places_are_skipped_and_when_all_are_busy_the_request_is_refused(policy) -> None:
    made = router(policy, "a", "b", thresholds=BusyThresholds(active_prefill_tokens=40))
    start(made, request("1", tokens=48), "a")
    assert workers_of(made, request()) == {"b"}
    start(made, request("2", tokens=48), "b")
    with pytest.raises(Overloaded, match="all workers are busy"):
        made.choose(request(), 0.0)
    made.advanced("1", 1, 0.0)
    assert workers_of(made, request()) == {"a"}
    for request_id in "12":
        made.finished(request_id, 0.0)
    assert workers_of(made, request()) == {"a", "b"}


@every_policy
def test_thresholds_may_be_changed_and_taken_away(policy) -> None:
    made = router(policy, "a")
    start(made, request("1", tokens=48), "a")
    made.thresholds = BusyThresholds(active_decode_blocks=0.02)
    with pytest.raises(Overloaded):
        made.choose(request(), 0.0)
    made.thresholds = BusyThresholds()
    assert chosen(made, request()) == Place("a")


@every_policy
def test_who_is_pinned_to_a_busy_worker_is_told_so(policy) -> None:
    made = router(policy, "a", "b", thresholds=BusyThresholds(active_prefill_tokens=40))
    start(made, request("1", tokens=48), "a")
    with pytest.raises(Overloaded, match="worker 'a' is busy and the request is pinned to it"):
        made.choose(request(pinned="a"), 0.0)
    with pytest.raises(Overloaded, match="worker 'a', rank 0, is busy"):
        made.choose(request(pinned="a", pinned_rank=0), 0.0)


@every_policy
def test_what_runs_is_told_to_peers_until_it_is_over(policy) -> None:
    made = router(policy, "a", "b")
    start(made, request("1", tokens=40), "a")
    assert made.active() == {Place("a"): Active(blocks=3, prefill_tokens=40, requests=1)}
    made.advanced("1", 9, 0.0)
    assert made.active() == {Place("a"): Active(4, 0, 1)}
    made.finished("1", 0.0)
    assert made.active() == {}


@every_policy
def test_candidates_are_judged_the_best_first_and_the_busy_last(policy) -> None:
    made = router(policy, "a", "b", "c", thresholds=BusyThresholds(active_prefill_tokens=100))
    start(made, request("1", tokens=112), "a")
    start(made, request("2", tokens=48), "b")
    judged = made.explain(request(), 0.0)
    assert [it.place.worker_id for it in judged] == ["c", "b", "a"]
    assert [it.busy for it in judged] == [False, False, True]
    assert [it.prefill_tokens for it in judged] == [0, 48, 112]
    assert [it.active_blocks for it in judged] == [0, 3, 7]
    assert made.active() == {
        Place("a"): Active(7, 112, 1),
        Place("b"): Active(3, 48, 1),
    }


@every_policy
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["choose", "choose", "advance", "finish", "leave", "join", "stall"]),
            st.sampled_from("abc"),
            st.integers(0, 9),
        ),
        max_size=50,
    )
)
def test_every_start_has_its_end_whatever_happens_to_the_workers(policy, steps) -> None:
    made, running = router(policy, "a", "b", ranks=2), set()
    for kind, worker, number in steps:
        request_id = str(number)
        if kind == "choose":
            asked = request(request_id, tokens=10 * number)
            choice = made.choose(asked, 0.0)
            if choice is not None:
                made.started(asked, choice, 0.0)
                running.add(request_id)
        elif kind == "advance":
            made.advanced(request_id, number, 0.0)
        elif kind == "finish":
            made.finished(request_id, 0.0)
            running.discard(request_id)
        elif kind == "leave":
            made.observe(WorkerLeft(worker))
        elif kind == "join":
            made.observe(WorkerJoined(worker, 2, kv_blocks=100, block_size=16))
        else:
            made.observe(WorkerStalled(worker, bool(number % 2)))
        assert sum(it.requests for it in made.active().values()) == len(running)
    for request_id in running:
        made.finished(request_id, 0.0)
    assert made.active() == {}


def test_round_robin_takes_each_place_in_turn() -> None:
    made = router("round-robin", "a", "b", "c")
    places = [chosen(made, request()) for _ in range(6)]
    assert [place.worker_id for place in places if place] == ["a", "b", "c", "a", "b", "c"]


def test_random_choices_repeat_with_their_seed() -> None:
    runs = [
        [chosen(made, request()) for _ in range(60)]
        for made in (router("random", "a", "b", "c"), router("random", "a", "b", "c"))
    ]
    assert len(set(runs[0])) == 3
    assert runs[0] == runs[1]


def test_the_least_loaded_is_taken_by_blocks_and_not_by_the_number_of_requests() -> None:
    made = router("least-loaded", "a", "b")
    start(made, request("long", tokens=1600), "a")
    for number in range(5):
        start(made, request(str(number), tokens=16), "b")
    assert workers_of(made, request()) == {"b"}


def test_load_of_peers_and_engines_counts_too() -> None:
    made = router("least-loaded", "a", "b", "c")
    for worker in "abc":
        made.observe(LoadReported(Place(worker), 0, 0, 0.0, 0.0))
    made.observe(PeerLoad("x", {Place("a"): Active(5, 0, 1)}))
    made.observe(LoadReported(Place("b"), 1, 0, 0.1, 1.0))
    assert workers_of(made, request()) == {"c"}


def test_of_two_choices_the_most_loaded_place_is_never_taken() -> None:
    made = router("power-of-two", "a", "b", "c", "d")
    start(made, request("1", tokens=160), "a")
    assert workers_of(made, request()) == {"b", "c", "d"}


@pytest.mark.parametrize("policy", ["power-of-two", "least-loaded", "kv"])
def test_a_herd_of_strange_prompts_spreads_over_places_of_equal_load(policy) -> None:
    made = router(policy, *"abcdefgh")
    seen: Counter[str] = Counter()
    for number in range(400):
        prompt = list(range(1000 * number, 1000 * number + 64))
        asked = RouteRequest(request_id=str(number), token_ids=prompt)
        choice = made.choose(asked, 0.0)
        assert choice is not None
        made.started(asked, choice, 0.0)
        seen[choice.worker_id] += 1
    assert max(seen.values()) - min(seen.values()) <= (12 if policy == "power-of-two" else 1)


@pytest.mark.parametrize("policy", ["least-loaded", "kv"])
def test_equal_places_are_taken_at_random_when_nothing_runs(policy) -> None:
    made = router(policy, *"abcd")
    seen = Counter(chosen(made, request()) for _ in range(400))
    assert len(seen) == 4
    assert min(seen.values()) > 50


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "best"), ("block_size", 0), ("overlap_weight", -1.0),
        ("overlap_weight", float("nan")), ("temperature", float("inf")), ("ttl_s", 0.0),
        ("max_blocks_per_worker", 0), ("prune_ratio", 0.0), ("prune_ratio", 1.5),
    ],
)  # fmt: skip
def test_a_setting_that_is_wrong_is_named(field, value) -> None:
    with pytest.raises(InvalidConfig) as raised:
        RouterSettings(**{field: value})
    assert raised.value.param == field
    assert field in raised.value.message


@pytest.mark.parametrize(
    ("field", "value"), [("active_decode_blocks", 1.1), ("active_prefill_tokens", -1)]
)
def test_a_threshold_that_is_wrong_is_named(field, value) -> None:
    with pytest.raises(InvalidConfig) as raised:
        RouterSettings(thresholds=BusyThresholds(**{field: value}))
    assert raised.value.param == field
