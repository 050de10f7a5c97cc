"""The KV-aware policy: where the prompt is cached, unless others have less to do."""

from array import array
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.kv import KvRouter
from router.router import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Choice,
    Place,
    RouteRequest,
    WorkerJoined,
    WorkerLeft,
)
from router.settings import RouterSettings
from wire.block_hash import Hashes, prefix_hashes, root_hash

BLOCK = 4
A, B, C = Place("a"), Place("b"), Place("c")
PROMPT = list(range(80))


def kv(*workers: str, block_size: int = BLOCK, **settings: Any) -> KvRouter:
    made = KvRouter(RouterSettings(policy="kv", block_size=BLOCK, **{"seed": 1} | settings))
    for worker in workers:
        made.observe(WorkerJoined(worker, kv_blocks=1000, block_size=block_size))
    return made


def ask(tokens: list[int], request_id: str = "r", **fields: Any) -> RouteRequest:
    return RouteRequest(request_id=request_id, token_ids=array("i", tokens), **fields)


def blocks(tokens: list[int]) -> Hashes:
    return prefix_hashes(tokens, BLOCK)


def choose(made: KvRouter, request: RouteRequest, now: float = 0.0) -> Choice:
    choice = made.choose(request, now)
    assert choice is not None
    return choice


def run(made: KvRouter, tokens: list[int], request_id: str, now: float = 0.0) -> Choice:
    request = ask(tokens, request_id)
    choice = choose(made, request, now)
    made.started(request, choice, now)
    return choice


def serve(made: KvRouter, tokens: list[int], now: float = 0.0) -> Choice:
    """Run a request to its end, with the events that its worker would send."""
    choice = run(made, tokens, "served", now)
    made.advanced("served", 1, now)
    made.observe(BlocksStored(Place(choice.worker_id, choice.rank), blocks(tokens)))
    made.finished("served", now)
    return choice


def test_a_prompt_goes_where_most_of_it_is_cached() -> None:
    made = kv("a", "b", "c")
    made.observe(BlocksStored(A, blocks(PROMPT[:20])))
    made.observe(BlocksStored(B, blocks(PROMPT[:60])))
    choice = choose(made, ask(PROMPT))
    assert (choice.worker_id, choice.overlap_blocks, choice.prompt_blocks) == ("b", 15, 20)
    judged = made.explain(ask(PROMPT), 0.0)
    assert [(it.place, it.overlap_blocks) for it in judged] == [(B, 15), (A, 5), (C, 0)]
    assert choice.cost == judged[0].cost == 4 * 5 + 20


def test_load_outweighs_a_cache_when_it_is_more_than_the_cache_saves() -> None:
    made = kv("a", "b")
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.started(ask(list(range(500, 540)), "1"), Choice(worker_id="a"), 0.0)
    made.advanced("1", 1, 0.0)
    assert choose(made, ask(PROMPT)).worker_id == "a"
    made.started(ask(list(range(600, 700)), "2"), Choice(worker_id="a"), 0.0)
    assert choose(made, ask(PROMPT)).worker_id == "b"


def test_a_higher_weight_holds_on_to_the_cache_longer() -> None:
    for weight, expected in ((1.0, "b"), (3.0, "a")):
        made = kv("a", "b", overlap_weight=weight)
        made.observe(BlocksStored(A, blocks(PROMPT)))
        made.started(ask(list(range(500, 620)), "1"), Choice(worker_id="a"), 0.0)
        made.advanced("1", 1, 0.0)
        assert choose(made, ask(PROMPT)).worker_id == expected


def test_blocks_that_running_requests_use_already_are_no_further_load() -> None:
    made = kv("a", "b")
    for number in range(4):
        request = ask([*PROMPT, *range(1000 * number, 1000 * number + 4)], str(number))
        assert choose(made, request).worker_id == run(made, PROMPT, f"same-{number}").worker_id


def test_a_prompt_nobody_knows_goes_to_the_least_loaded() -> None:
    made = kv("a", "b", "c")
    made.observe(BlocksStored(C, blocks(list(range(5000, 9000)))))
    made.started(ask(list(range(500, 540)), "1"), Choice(worker_id="a"), 0.0)
    seen = Counter(choose(made, ask(PROMPT)).worker_id for _ in range(200))
    assert set(seen) == {"b", "c"}  # what is cached of other prompts does not matter
    assert min(seen.values()) > 60


def test_equal_caches_are_told_apart_by_how_much_else_is_cached() -> None:
    made = kv("a", "b")
    for place in (A, B):
        made.observe(BlocksStored(place, blocks(PROMPT)))
    made.observe(BlocksStored(A, blocks(list(range(900, 1000)))))
    assert {choose(made, ask(PROMPT)).worker_id for _ in range(20)} == {"b"}
    made.observe(BlocksStored(B, blocks(list(range(900, 1000)))))
    assert {choose(made, ask(PROMPT)).worker_id for _ in range(40)} == {"a", "b"}


def test_a_temperature_lets_dearer_places_have_some() -> None:
    made = kv("a", "b", temperature=0.5)
    made.observe(BlocksStored(A, blocks(PROMPT)))
    seen = Counter(choose(made, ask(PROMPT)).worker_id for _ in range(400))
    assert 20 < seen["b"] < 120
    cold = kv("a", "b", temperature=0.5)
    cold.started(ask(PROMPT, "1"), Choice(worker_id="a"), 0.0)
    assert {choose(cold, ask(list(range(500, 540)))).worker_id for _ in range(50)} == {"b"}


def test_adapters_and_salts_share_no_cache() -> None:
    made = kv("a", "b")
    root = root_hash("adapter", None)
    made.observe(BlocksStored(A, prefix_hashes(PROMPT, BLOCK, root)))
    assert choose(made, ask(PROMPT, lora_name="adapter")).overlap_blocks == 20
    assert choose(made, ask(PROMPT)).overlap_blocks == 0
    assert choose(made, ask(PROMPT, lora_name="adapter", cache_salt="x")).overlap_blocks == 0


def test_removed_and_cleared_blocks_count_no_more() -> None:
    made = kv("a", "b")
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.observe(BlocksRemoved(A, blocks(PROMPT)[5:]))
    assert choose(made, ask(PROMPT)).overlap_blocks == 5
    made.observe(BlocksCleared(A))
    assert choose(made, ask(PROMPT)).overlap_blocks == 0
    assert made.stats().blocks == {A: 0, B: 0}


def test_a_worker_that_left_is_forgotten_and_comes_back_with_nothing() -> None:
    made = kv("a", "b")
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.observe(WorkerLeft("a"))
    assert made.stats().blocks == {B: 0}
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.observe(WorkerJoined("a", kv_blocks=1000, block_size=BLOCK))
    assert choose(made, ask(PROMPT)).overlap_blocks == 0


@pytest.mark.parametrize("block_size", [0, 2 * BLOCK])
def test_a_worker_with_blocks_of_another_size_is_chosen_by_load_alone(block_size) -> None:
    made = kv("a", block_size=block_size)
    made.observe(WorkerJoined("b", kv_blocks=1000, block_size=BLOCK))
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.observe(BlocksStored(B, blocks(PROMPT[:8])))
    assert choose(made, ask(PROMPT)).worker_id == "b"
    run(made, PROMPT, "1")
    run(made, list(range(500, 700)), "2")
    assert {it.place: it.overlap_blocks for it in made.explain(ask(PROMPT), 0.0)}[A] == 0
    assert A not in made.stats().blocks


def test_each_rank_has_a_cache_of_its_own() -> None:
    made = kv()
    made.observe(WorkerJoined("a", 2, kv_blocks=1000, block_size=BLOCK))
    made.observe(BlocksStored(Place("a", 1), blocks(PROMPT)))
    choice = choose(made, ask(PROMPT))
    assert (choice.worker_id, choice.rank, choice.overlap_blocks) == ("a", 1, 20)
    assert choose(made, ask(PROMPT, pinned_rank=0)).overlap_blocks == 0


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("length", [80, 79, 77])
def test_two_equal_prompts_sent_together_meet_on_one_worker(events, length) -> None:
    made = kv("a", "b", "c", "d", use_kv_events=events)
    first = run(made, PROMPT[:length], "1")
    second = run(made, PROMPT[:length], "2")
    assert (second.worker_id, second.overlap_blocks) == (first.worker_id, length // BLOCK)


def test_a_flood_of_equal_prompts_does_not_stay_on_one_worker() -> None:
    made = kv("a", "b", "c", "d")
    seen = Counter(run(made, PROMPT[:79], str(number)).worker_id for number in range(200))
    assert len(seen) == 4
    assert max(seen.values()) <= 2 * min(seen.values())


def test_what_a_request_promised_and_its_worker_never_confirmed_ends_with_it() -> None:
    made = kv("a", "b")
    run(made, PROMPT, "1")
    made.finished("1", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 0
    assert sum(made.stats().blocks.values()) == 0


def test_what_a_worker_confirms_stays_after_the_request() -> None:
    made = kv("a", "b")
    first = run(made, PROMPT, "1")
    made.observe(BlocksStored(Place(first.worker_id), blocks(PROMPT[:40])))
    made.finished("1", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 10


def test_a_request_that_fails_leaves_what_was_there_before_it() -> None:
    made = kv("a")
    made.observe(BlocksStored(A, blocks(PROMPT[:40])))
    run(made, PROMPT, "1")
    made.finished("1", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 10


def test_a_cleared_cache_takes_promises_along() -> None:
    made = kv("a")
    run(made, PROMPT, "1")
    made.observe(BlocksCleared(A))
    made.observe(BlocksStored(A, blocks(PROMPT)))
    made.finished("1", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 20


def test_what_a_later_request_promised_outlives_an_earlier_one() -> None:
    made = kv("a")
    run(made, PROMPT, "1")
    made.observe(BlocksCleared(A))
    run(made, PROMPT, "2")
    made.finished("1", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 20
    made.finished("2", 0.0)
    assert choose(made, ask(PROMPT)).overlap_blocks == 0


def test_without_events_a_place_holds_what_was_sent_there_for_its_time() -> None:
    made = kv("a", "b", block_size=0, use_kv_events=False, ttl_s=10.0)
    first = run(made, PROMPT, "1", now=0.0)
    made.finished("1", 1.0)
    assert choose(made, ask(PROMPT), 9.9).overlap_blocks == 20
    assert choose(made, ask(PROMPT), 9.9).worker_id == first.worker_id
    assert choose(made, ask(PROMPT), 10.0).overlap_blocks == 0
    assert made.stats().blocks == {A: 0, B: 0}


def test_without_events_each_use_begins_the_time_anew() -> None:
    made = kv("a", use_kv_events=False, ttl_s=10.0)
    run(made, PROMPT, "1", now=0.0)
    run(made, [*PROMPT[:40], 7, 7, 7, 7], "2", now=6.0)
    assert choose(made, ask(PROMPT), 12.0).overlap_blocks == 10
    assert choose(made, ask(PROMPT), 16.0).overlap_blocks == 0


def test_without_events_those_that_come_all_the_same_are_ignored() -> None:
    made = kv("a", use_kv_events=False)
    made.observe(BlocksStored(A, blocks(PROMPT)))
    assert choose(made, ask(PROMPT)).overlap_blocks == 0
    run(made, PROMPT, "1")
    made.observe(BlocksCleared(A))
    assert choose(made, ask(PROMPT)).overlap_blocks == 20


def test_without_events_what_was_sent_longest_ago_goes_first_when_there_is_too_much() -> None:
    made = kv("a", use_kv_events=False, max_blocks_per_worker=50, prune_ratio=0.5)
    prompts = [list(range(1000 * n, 1000 * n + 80)) for n in range(3)]
    run(made, prompts[0], "0", now=0.0)
    run(made, prompts[1], "1", now=1.0)
    run(made, prompts[0], "2", now=2.0)
    run(made, prompts[2], "3", now=3.0)
    overlaps = [choose(made, ask(prompt), 4.0).overlap_blocks for prompt in prompts]
    assert overlaps == [0, 0, 20]
    assert (made.stats().blocks, made.stats().evicted) == ({A: 20}, 40)


def test_without_events_a_prompt_longer_than_the_bound_is_known_by_its_beginning() -> None:
    made = kv("a", use_kv_events=False, max_blocks_per_worker=5)
    run(made, PROMPT, "1")
    assert choose(made, ask(PROMPT)).overlap_blocks == 5


def test_without_events_a_long_prompt_is_known_at_once_and_taken_in_by_and_by() -> None:
    made = kv("a", "b", use_kv_events=False, ttl_s=10.0)
    prompt = list(range(12_000))
    run(made, prompt, "1", now=0.0)
    assert sum(made.stats().blocks.values()) < 3000
    assert choose(made, ask(prompt), 0.0).overlap_blocks == 3000
    made.finished("1", 0.0)
    for _ in range(3):
        assert choose(made, ask(prompt), 1.0).overlap_blocks == 3000
    assert sum(made.stats().blocks.values()) == 3000
    for _ in range(3):
        choose(made, ask(PROMPT), 11.0)
    assert sum(made.stats().blocks.values()) == 0
    assert choose(made, ask(prompt), 11.0).overlap_blocks == 0


def test_without_events_a_long_prompt_is_taken_in_by_work_that_can_wait() -> None:
    made = kv("a", use_kv_events=False)
    assert not made.work(0.0)
    run(made, list(range(12_000)), "1")
    steps = 1
    while made.work(0.0):
        steps += 1
    assert (steps, made.stats().blocks) == (3, {A: 3000})


def test_without_events_long_prompts_stay_within_the_bound() -> None:
    made = kv("a", use_kv_events=False, max_blocks_per_worker=5000, prune_ratio=0.5)
    prompts = [list(range(at, at + 12_000)) for at in range(0, 20 * 12_000, 12_000)]
    for number, prompt in enumerate(prompts):
        run(made, prompt, str(number), now=float(number))
        assert choose(made, ask(prompt), float(number)).overlap_blocks == 3000
        assert made.stats().blocks[A] <= 5000
    assert choose(made, ask(prompts[0]), 20.0).overlap_blocks == 0


def test_without_events_a_worker_that_left_is_forgotten() -> None:
    made = kv("a", use_kv_events=False, ttl_s=10.0)
    run(made, PROMPT, "1", now=0.0)
    made.observe(WorkerLeft("a"))
    made.observe(WorkerJoined("a"))
    assert choose(made, ask(PROMPT), 1.0).overlap_blocks == 0
    run(made, PROMPT, "2", now=5.0)
    assert choose(made, ask(PROMPT), 11.0).overlap_blocks == 20


def test_an_index_over_its_bound_says_what_it_forgot() -> None:
    made = kv("a", max_blocks_per_worker=10, prune_ratio=0.5)
    made.observe(BlocksStored(A, blocks(PROMPT)))
    assert (made.stats().blocks, made.stats().evicted) == ({A: 5}, 15)


def test_prompts_shorter_than_a_block_are_routed_by_load() -> None:
    made = kv("a", "b")
    made.started(ask(PROMPT, "1"), Choice(worker_id="a"), 0.0)
    choice = choose(made, ask([1, 2]))
    assert (choice.worker_id, choice.prompt_blocks) == ("b", 0)
    assert serve(made, []).prompt_blocks == 0


PROMPTS = st.lists(st.integers(0, 1), max_size=24)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "store", "advance", "finish"]),
            st.integers(0, 4),
            PROMPTS,
        ),
        max_size=40,
    ),
    PROMPTS,
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.booleans(),
)
def test_what_is_chosen_is_the_best_of_what_is_explained(steps, prompt, weight, events) -> None:
    made = kv("a", "b", "c", "d", "e", overlap_weight=weight, use_kv_events=events)
    for kind, number, tokens in steps:
        worker = "abcde"[number]
        if kind == "run":
            request = ask(tokens, str(number), pinned=worker)
            made.started(request, choose(made, request), 0.0)
        elif kind == "store":
            made.observe(BlocksStored(Place(worker), blocks(tokens)))
        elif kind == "advance":
            made.advanced(str(number), 3, 0.0)
        else:
            made.finished(str(number), 0.0)
    judged = made.explain(ask(prompt), 0.0)
    choice = choose(made, ask(prompt))
    place = Place(choice.worker_id, choice.rank)
    assert choice.cost == pytest.approx(judged[0].cost)
    (same,) = (it for it in judged if it.place == place)
    assert (same.cost, same.overlap_blocks) == pytest.approx((choice.cost, choice.overlap_blocks))
    assert all(it.cost >= 0 for it in judged)
