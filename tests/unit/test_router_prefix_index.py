"""The prefix index against a naive model of it, and its bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prefix_index import PrefixIndex
from router.router import Place
from runtime.errors import InternalError
from wire.block_hash import Hashes, prefix_hashes

A, B, C = Place("a"), Place("b"), Place("b", 1)
PLACES = (A, B, C)


def chain(*tokens: int) -> Hashes:
    """A prompt's blocks, one token each."""
    return prefix_hashes(list(tokens), 1)


def index_of(*places: Place, max_blocks: int = 1000, prune_ratio: float = 0.8) -> PrefixIndex:
    index = PrefixIndex(max_blocks, prune_ratio)
    for row, place in enumerate(places):
        index.add(place, row)
    return index


def array(blocks: list[int]) -> Hashes:
    return np.array(blocks, np.uint64)


# Prompts that part at few tokens, so that they share prefixes.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda it: chain(*it))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "remove", "clear", "drop", "add", "sweep"]),
        st.sampled_from(PLACES),
        PROMPTS,
        st.integers(0, 12),
    ),
    max_size=40,
)


def naive_overlap(held: set[int], prompt: Hashes) -> int:
    depth = 0
    for block in prompt.tolist():
        if block not in held:
            break
        depth += 1
    return depth


@given(STEPS, PROMPTS)
def test_it_holds_what_a_dictionary_of_sets_holds(steps, prompt) -> None:
    index, model = index_of(*PLACES), {place: set() for place in PLACES}
    for kind, place, blocks, cut in steps:
        if kind == "store":
            fresh = index.store(place, blocks)
            expected = set(blocks.tolist()) - model[place] if place in model else set()
            assert set(fresh.tolist()) == expected
            if place in model:
                model[place] |= set(blocks.tolist())
        elif kind == "remove":
            end = blocks[cut:]  # the deep end, as caches evict
            known = model.get(place, set())
            prefix = set(blocks[:cut].tolist())
            gone = {it for it in known if it in set(end.tolist()) - prefix}
            assert index.remove(place, end) == len(gone)
            known -= gone
        elif kind == "clear" and place in model:
            index.clear(place)
            model[place] = set()
        elif kind == "drop":
            index.drop(place)
            model.pop(place, None)
        elif kind == "add":
            index.add(place, PLACES.index(place))
            model[place] = set()
        else:
            index.sweep(3)
        assert index.counts() == {place: len(held) for place, held in model.items()}
    for place, held in model.items():
        assert sorted(index.blocks(place).tolist()) == sorted(held)
    index.sweep(10_000)
    assert len(index) == len(set().union(*model.values()))


@given(st.lists(st.tuples(st.sampled_from(PLACES), PROMPTS), max_size=20), PROMPTS)
def test_overlaps_are_those_of_a_walk_along_the_prompt(stored, prompt) -> None:
    index, model = index_of(*PLACES), {place: set() for place in PLACES}
    for place, blocks in stored:
        index.store(place, blocks)
        model[place] |= set(blocks.tolist())
    walked = {place: naive_overlap(held, prompt) for place, held in model.items()}
    assert index.overlaps(prompt) == {place: n for place, n in walked.items() if n}
    assert index.overlaps_by_row(prompt, 3).tolist() == [walked[place] for place in PLACES]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=100), st.integers(1, 300))
def test_many_places_at_many_depths_are_each_found(depths, length) -> None:
    places = [Place(str(number)) for number in range(len(depths))]
    index = index_of(*places)
    prompt = chain(*range(length))
    for place, depth in zip(places, depths, strict=True):
        index.store(place, prompt[:depth])
    found = index.overlaps_by_row(prompt, len(places)).tolist()
    assert found == [min(depth, length) for depth in depths]


GAPS = st.sets(st.integers(0, 40))


@given(GAPS, GAPS, GAPS, st.integers(1, 40))
def test_places_with_gaps_have_overlaps_that_end_in_a_block_they_hold(a, b, c, length) -> None:
    index, holders = index_of(*PLACES), {A: a, B: b, C: c}
    prompt = chain(*range(length))
    for place, held in holders.items():
        index.store(place, prompt[[at for at in sorted(held) if at < length]])
    overlaps = index.overlaps(prompt)
    for place, held in holders.items():
        depth = overlaps.get(place, 0)
        assert depth == 0 or depth - 1 in held
        assert (depth > 0) == (0 in held)
    found = [mask for mask, _ in index._search(prompt)]
    assert sum(mask.bit_count() for mask in found) == len(overlaps)


def test_who_holds_a_deep_block_is_taken_to_hold_those_before_it() -> None:
    index, prompt = index_of(A, B), chain(*range(8))
    index.store(A, prompt[[0, 1, 2, 3, 7]])
    index.store(B, prompt[:4])
    assert index.overlaps(prompt) == {A: 8, B: 4}


def test_nothing_is_found_for_an_empty_prompt_or_in_an_empty_index() -> None:
    index = index_of(A)
    assert index.overlaps(chain(1, 2)) == {}
    index.store(A, chain(1, 2))
    assert index.overlaps(chain()) == {}


def test_over_the_bound_the_blocks_stored_first_go_and_of_a_chain_its_end() -> None:
    index = index_of(A, max_blocks=10, prune_ratio=0.5)
    old, young = chain(*range(100, 106)), chain(*range(200, 205))
    index.store(A, old)
    index.store(A, young)
    assert (index.count(A), index.evicted) == (5, 6)
    assert index.overlaps(old) == {}
    assert index.overlaps(young) == {A: 5}
    index.store(A, chain(*range(300, 306)))
    assert index.overlaps(young) == {}
    assert index.overlaps(chain(*range(300, 306))) == {A: 5}


def test_a_block_stored_again_after_its_removal_counts_from_the_second_time() -> None:
    index = index_of(A, max_blocks=4, prune_ratio=0.5)
    first, second = chain(1), chain(2)
    index.store(A, first)
    index.store(A, second)
    index.remove(A, first)
    index.store(A, first)
    index.store(A, chain(*range(10, 13)))
    assert second[0] not in index.blocks(A)
    assert index.count(A) == 2


def test_the_bound_of_one_place_leaves_the_others_alone() -> None:
    index = index_of(A, B, max_blocks=4)
    prompt = chain(*range(4))
    index.store(B, prompt)
    index.store(A, prompt)
    index.store(A, chain(*range(50, 60)))
    assert index.overlaps(prompt) == {B: 4}
    assert index.count(A) <= 4


def test_removals_without_end_leave_no_trace() -> None:
    index = index_of(A)
    for number in range(0, 20_000, 10):
        blocks = chain(*range(number, number + 10))
        index.store(A, blocks)
        index.remove(A, blocks)
    assert (len(index), index.count(A)) == (0, 0)
    assert index._held[A].order.entries < 2000


def test_a_place_that_takes_another_ones_number_has_none_of_its_blocks() -> None:
    index = index_of(A)
    prompt = chain(*range(50))
    for _ in range(20):
        index.store(A, prompt)
        index.drop(A)
        index.add(A, 0)
        assert index.overlaps(prompt) == {}
    index.sweep(10_000)
    assert len(index) == 0
    assert len(index._rows) < 25
    index.store(A, prompt)
    index.drop(A)
    index.sweep(10_000)
    index.add(B, 0)
    assert index.overlaps(prompt) == {}


def test_what_others_store_sweeps_out_what_a_dropped_place_held() -> None:
    index = index_of(A, B)
    index.store(A, chain(*range(100)))
    index.drop(A)
    index.store(B, chain(*range(1000, 1050)))
    assert len(index) == index.count(B) == 50


def test_blocks_of_a_place_that_is_not_known_are_ignored() -> None:
    index = index_of(A)
    index.store(B, chain(1))
    index.remove(B, chain(1))
    index.clear(B)
    index.drop(B)
    assert (index.counts(), len(index), index.count(B), len(index.blocks(B))) == ({A: 0}, 0, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(PLACES), PROMPTS), max_size=20))
def test_a_snapshot_restores_every_place_that_is_known(stored) -> None:
    index = index_of(*PLACES)
    for place, blocks in stored:
        index.store(place, blocks)
    other = index_of(C, A)
    other.store(A, chain(7, 7, 7))
    other.restore(index.snapshot())
    for place in (A, C):
        assert other.blocks(place).tolist() == index.blocks(place).tolist()
    assert set(other.counts()) == {A, C}


@pytest.mark.parametrize("broken", [b"", b"\xff", b"\x91\x92\x92\xa1a\x00\xc4\x031.2"])
def test_a_malformed_snapshot_changes_nothing(broken) -> None:
    index = index_of(A)
    index.store(A, chain(1, 2))
    with pytest.raises(InternalError):
        index.restore(broken)
    assert index.count(A) == 2
