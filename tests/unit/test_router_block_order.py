"""The order of a place's blocks against a dictionary, which keeps the order of insertion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.block_masks import BlockMasks, keys_of
from router.block_order import BlockOrder
from wire.block_hash import Hashes

BLOCKS = st.lists(st.integers(0, 40), max_size=12, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "store", "remove", "remove", "oldest", "list"]), BLOCKS),
    max_size=120,
)


def hashes_of(blocks: list[int]) -> Hashes:
    return np.array(blocks, np.uint64) << np.uint64(4)


@given(STEPS, st.integers(1, 5))
def test_each_block_stands_where_it_was_stored_last(steps, segment) -> None:
    order, model = BlockOrder(segment), {}
    for kind, blocks in steps:
        if kind == "store":
            fresh = [block for block in blocks if block not in model]
            order.store(hashes_of(fresh))
            model |= dict.fromkeys(fresh)
        elif kind == "remove":
            held = [block for block in blocks if block in model]
            order.remove(held)
            for block in held:
                del model[block]
        elif kind == "oldest":
            expected = list(model)[: len(blocks)]
            assert keys_of(order.pop_oldest(len(blocks))) == expected
            for block in expected:
                del model[block]
        else:
            assert keys_of(order.hashes()) == list(model)
        assert order.count == len(model)
        assert order.entries >= order.count
    assert keys_of(order.hashes()) == list(model)
    assert order.entries == order.count


@given(STEPS, st.integers(1, 5))
def test_its_entries_come_out_from_the_end_and_leave_nothing(steps, segment) -> None:
    order, held = BlockOrder(segment), set()
    for kind, blocks in steps:
        if kind == "store":
            order.store(hashes_of([block for block in blocks if block not in held]))
            held |= set(blocks)
        elif kind == "remove":
            order.remove([block for block in blocks if block in held])
            held -= set(blocks)
    found: set[int] = set()
    while order.entries:
        found |= set(keys_of(order.pop_entries(3)))
    assert found >= held


@pytest.mark.parametrize("at_once", [100, 8000])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_a_place_that_changes_its_blocks_for_ever_has_few_entries_too_many(
    at_once: int, oldest_first: bool
) -> None:
    order, rng, kept = BlockOrder(), np.random.default_rng(4), 20_000
    held = np.arange(2 * kept)
    order.store(hashes_of(held[:kept].tolist()))
    for _ in range(0, 20 * kept, at_once):
        if not oldest_first:
            held[:kept] = rng.permutation(held[:kept])
        # Those that go now come back when all others have been held.
        gone, new = held[:at_once], held[kept : kept + at_once]
        order.remove(gone.tolist())
        order.store(hashes_of(new.tolist()))
        held = np.concatenate((held[at_once:kept], new, held[kept + at_once :], gone))
        assert order.count == kept
        assert order.entries < 1.3 * kept
    assert sorted(keys_of(order.hashes())) == sorted(held[:kept].tolist())


def test_masks_are_those_of_a_dictionary_whatever_the_hashes() -> None:
    masks, model = BlockMasks(), {}
    numbers = np.random.default_rng(3).integers(0, 2**64, 20_000, np.uint64)
    for bit, part in ((1, numbers[:15_000]), (2, numbers[10_000:]), (4, numbers[:1])):
        assert masks.set(bit, part).tolist() == part.tolist()
        assert len(masks.set(bit, part)) == 0
        for block in part.tolist():
            model[block] = model.get(block, 0) | bit
    assert {block: masks.get(block) for block in numbers.tolist()} == model
    assert len(masks) == len(model)
    assert masks.unset(1, numbers) == keys_of(numbers[:15_000])
    assert len(masks) == 10_001
