"""Load accounting against a naive recount, in any order of what can happen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.load import Load
from router.place_table import PlaceTable
from router.router import (
    Active,
    BusyThresholds,
    LoadReported,
    PeerLoad,
    Place,
    WorkerJoined,
)
from wire.block_hash import NO_HASHES, Hashes, prefix_hashes

BLOCK = 4
A, B = Place("a"), Place("b")


class Fleet:
    """A load and its table, asked by place."""

    def __init__(self, *workers: str, kv_blocks: int = 100) -> None:
        self.table = PlaceTable(BLOCK)
        self.load = Load(self.table, BLOCK)
        for worker in workers:
            self.load.joined(WorkerJoined(worker, kv_blocks=kv_blocks, block_size=BLOCK))

    def rows(self, *places: Place):
        return np.array([self.table.row(place) for place in places], np.intp)

    def blocks(self, place: Place = A) -> float:
        return float(self.load.blocks(self.rows(place))[0])

    def prefill(self, place: Place = A) -> int:
        return int(self.load.prefill_tokens(self.rows(place))[0])

    def start(self, request_id: str, place: Place, tokens: list[int], cached: int = 0) -> None:
        hashes = prefix_hashes(tokens, BLOCK)
        self.load.started(
            request_id, place, tokens=len(tokens), hashes=hashes, cached_blocks=cached
        )


@dataclass
class Request:
    """What the naive recount knows of one."""

    place: Place
    prompt: int
    hashes: Hashes
    pending: int
    made: int = 0


def recount(requests: Mapping[str, Request]) -> dict[Place, Active]:
    found = {}
    for place in {it.place for it in requests.values()}:
        here = [it for it in requests.values() if it.place == place]
        shared = {block for it in here for block in it.hashes.tolist()}
        own = sum(math.ceil((it.prompt + it.made) / BLOCK) - len(it.hashes) for it in here)
        found[place] = Active(len(shared) + own, sum(it.pending for it in here), len(here))
    return found


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "advance", "finish", "leave", "join", "report", "peer"]),
        st.sampled_from("rstuv"),
        st.sampled_from([A, B, Place("c", 1)]),
        st.lists(st.integers(0, 1), max_size=14),
        st.integers(0, 5),
    ),
    max_size=60,
)


def tell(fleet: Fleet, kind: str, place: Place, number: int, peer: str) -> None:
    """What concerns workers and not this router's requests."""
    if kind in ("leave", "join"):
        fleet.load.left(place.worker_id)
    if kind == "join":
        fleet.load.joined(WorkerJoined(place.worker_id, 2, kv_blocks=100, block_size=BLOCK))
    elif kind == "report":
        fleet.load.reported(LoadReported(place, number, number, number / 5, 0.0))
    elif kind == "peer":
        active = {place: Active(number, number, number)} if number else {}
        fleet.load.peer(PeerLoad(peer, active))


@given(HAPPENINGS)
def test_what_runs_is_what_a_recount_finds_and_nothing_is_left_at_the_end(happenings) -> None:
    fleet, requests = Fleet("a", "b"), {}
    for kind, request_id, place, tokens, number in happenings:
        if kind == "start":
            hashes = prefix_hashes(tokens, BLOCK)
            cached = min(number, len(hashes))
            fleet.start(request_id, place, tokens, cached)
            pending = len(tokens) - cached * BLOCK
            requests[request_id] = Request(place, len(tokens), hashes, pending)
        elif kind == "advance":
            fleet.load.advanced(request_id, number)
            if request_id in requests:
                requests[request_id].made += number
                requests[request_id].pending = 0
        elif kind == "finish":
            fleet.load.finished(request_id)
            requests.pop(request_id, None)
        else:
            tell(fleet, kind, place, number, request_id)
        assert fleet.load.active() == recount(requests)
        members = fleet.table.members()
        assert (fleet.load.blocks(members) >= 0).all()
        assert (fleet.load.prefill_tokens(members) >= 0).all()
    for request_id in list(requests):
        fleet.load.finished(request_id)
    assert fleet.load.active() == {}
    assert not fleet.load._own.any()
    assert not fleet.load._prompts


@given(HAPPENINGS)
def test_what_a_prompt_has_in_common_with_others_is_what_a_walk_along_it_finds(happenings) -> None:
    fleet, prompts = Fleet("a"), []
    for number, (_, _, _, tokens, _) in enumerate(happenings):
        fleet.start(str(number), A, tokens)
        prompts.append(prefix_hashes(tokens, BLOCK).tolist())
    used = {block for prompt in prompts for block in prompt}
    asked = prefix_hashes([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0], BLOCK)
    walked = 0
    while walked < len(asked) and int(asked[walked]) in used:
        walked += 1
    assert fleet.load.shared(0, asked)[0] == walked
    assert fleet.load.shared(0, asked[:walked]) == (walked, walked)
    assert fleet.load.shared(0, NO_HASHES) == (0, 0)


def test_what_others_have_yet_to_compute_of_a_prompt_is_the_end_that_was_not_cached() -> None:
    fleet = Fleet("a")
    prompt = list(range(40))
    fleet.start("first", A, prompt[:20], cached=2)
    asked = prefix_hashes(prompt, BLOCK)
    assert fleet.load.shared(0, asked[:5]) == (5, 3)
    assert fleet.load.shared(0, asked[:2]) == (2, 0)
    fleet.start("second", A, prompt, cached=5)
    assert fleet.load.shared(0, asked) == (10, 8)
    fleet.load.advanced("first", 1)
    assert fleet.load.shared(0, asked) == (10, 5)
    fleet.load.finished("second")
    assert fleet.load.shared(0, asked[:5]) == (5, 0)


def test_a_prompt_counts_until_it_is_computed_and_its_blocks_until_the_end() -> None:
    fleet = Fleet("a")
    fleet.start("r", A, list(range(10)), cached=1)
    assert fleet.load.active() == {A: Active(blocks=3, prefill_tokens=6, requests=1)}
    fleet.load.advanced("r", 2)
    assert fleet.load.active() == {A: Active(3, 0, 1)}
    fleet.load.advanced("r", 1)
    assert fleet.load.active() == {A: Active(4, 0, 1)}
    fleet.load.finished("r")
    fleet.load.finished("r")
    assert fleet.load.active() == {}


def test_prompt_blocks_that_requests_share_on_one_place_count_once() -> None:
    fleet = Fleet("a", "b")
    for number in range(3):
        fleet.start(f"a{number}", A, [*range(8), number, number])
    fleet.start("b", B, list(range(8)))
    assert {place: it.blocks for place, it in fleet.load.active().items()} == {A: 5, B: 2}
    fleet.load.finished("a0")
    assert fleet.load.active()[A].blocks == 4
    fleet.load.finished("a1")
    fleet.load.finished("a2")
    assert A not in fleet.load.active()


def test_what_the_engine_says_counts_where_it_is_more_than_what_is_known_here() -> None:
    fleet = Fleet("a")
    fleet.start("r", A, list(range(40)))
    fleet.load.reported(LoadReported(A, running=2, waiting=0, kv_usage=0.3, now=0.0))
    assert fleet.blocks() == 30
    fleet.load.reported(LoadReported(A, running=1, waiting=0, kv_usage=0.05, now=1.0))
    assert fleet.blocks() == 10


def test_between_reports_starts_and_ends_are_followed() -> None:
    fleet = Fleet("a")
    fleet.start("r", A, list(range(40)))
    fleet.load.reported(LoadReported(A, running=2, waiting=0, kv_usage=0.3, now=0.0))
    fleet.start("s", A, list(range(100, 120)))
    assert fleet.blocks() == 35
    fleet.load.finished("r")
    assert fleet.blocks() == 25


def test_requests_that_wait_in_the_engine_count_like_those_that_run() -> None:
    fleet = Fleet("a")
    fleet.load.reported(LoadReported(A, running=10, waiting=5, kv_usage=0.8, now=0.0))
    assert fleet.blocks() == pytest.approx(120)


def test_a_place_that_has_not_reported_is_taken_for_an_average_one_and_not_for_idle() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.load.reported(LoadReported(A, 1, 0, 0.2, 0.0))
    fleet.load.reported(LoadReported(B, 1, 0, 0.4, 0.0))
    c = Place("c")
    assert fleet.load.blocks(fleet.rows(A, B, c)).tolist() == pytest.approx([20, 40, 30])
    fleet.load.reported(LoadReported(c, 0, 0, 0.0, 0.0))
    assert fleet.blocks(c) == 0


def test_a_report_without_a_known_capacity_leaves_the_load_unknown() -> None:
    fleet = Fleet("a")
    fleet.load.joined(WorkerJoined("b", kv_blocks=0, block_size=BLOCK))
    fleet.load.reported(LoadReported(B, 0, 0, 0.0, 0.0))
    fleet.load.reported(LoadReported(A, 1, 0, 0.5, 0.0))
    assert fleet.load.blocks(fleet.rows(A, B)).tolist() == [50, 50]


def test_capacity_is_counted_in_blocks_of_the_routers_size() -> None:
    fleet = Fleet()
    fleet.load.joined(WorkerJoined("a", kv_blocks=100, block_size=4 * BLOCK))
    fleet.load.reported(LoadReported(A, 1, 0, 0.5, 0.0))
    assert fleet.blocks() == 200


def test_peers_count_and_are_gone_when_they_say_nothing_more() -> None:
    fleet = Fleet("a")
    fleet.load.peer(PeerLoad("x", {A: Active(10, 100, 1)}))
    fleet.load.peer(PeerLoad("y", {A: Active(5, 50, 1), B: Active(7, 70, 1)}))
    assert (fleet.blocks(), fleet.prefill()) == (15, 150)
    fleet.load.peer(PeerLoad("x", {A: Active(1, 0, 1)}))
    fleet.load.peer(PeerLoad("y", {}))
    assert (fleet.blocks(), fleet.prefill()) == (1, 0)
    assert fleet.load.active() == {}


def test_what_peers_run_on_a_worker_counts_when_it_joins_later() -> None:
    fleet = Fleet("a")
    fleet.load.peer(PeerLoad("x", {B: Active(7, 70, 1)}))
    fleet.load.joined(WorkerJoined("b", kv_blocks=100, block_size=BLOCK))
    assert (fleet.blocks(B), fleet.prefill(B)) == (7, 70)


def test_what_runs_on_a_worker_that_left_is_there_when_it_comes_back() -> None:
    fleet = Fleet("a")
    fleet.start("r", A, list(range(8)))
    fleet.load.left("a")
    fleet.load.joined(WorkerJoined("b", kv_blocks=100, block_size=BLOCK))
    assert fleet.blocks(B) == 0
    fleet.load.joined(WorkerJoined("a", kv_blocks=100, block_size=BLOCK))
    assert fleet.blocks() == 2
    fleet.load.finished("r")
    assert fleet.blocks() == 0


def test_a_worker_that_comes_back_brings_nothing_of_what_its_engine_said() -> None:
    fleet = Fleet("a")
    fleet.load.reported(LoadReported(A, 1, 0, 0.9, 0.0))
    fleet.load.left("a")
    fleet.load.joined(WorkerJoined("a", kv_blocks=100, block_size=BLOCK))
    assert fleet.blocks() == 0


def test_rows_of_workers_that_come_and_go_are_used_again() -> None:
    fleet = Fleet()
    for number in range(200):
        fleet.load.joined(WorkerJoined(str(number)))
        fleet.start("r", Place(str(number)), [1])
        fleet.load.left(str(number))
        fleet.load.finished("r")
    assert len(fleet.table) == 1


def test_places_are_busy_above_either_threshold() -> None:
    fleet = Fleet("a", "b")
    fleet.start("r", A, list(range(44)))
    rows = fleet.rows(A, B)

    def busy(**thresholds) -> list[bool]:
        return fleet.load.busy(rows, BusyThresholds(**thresholds)).tolist()

    assert busy() == [False, False]
    assert busy(active_decode_blocks=0.1) == [True, False]
    assert busy(active_decode_blocks=0.11) == [False, False]
    assert busy(active_prefill_tokens=43) == [True, False]
    assert busy(active_prefill_tokens=44) == [False, False]
    assert busy(active_decode_blocks=0.9, active_prefill_tokens=10) == [True, False]
    fleet.load.advanced("r", 1)
    assert busy(active_prefill_tokens=0) == [False, False]
