"""The order of a place's blocks against a dictionary, which keeps the order of insertion."""

import numpy as np
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


def test_a_place_that_changes_its_blocks_for_ever_has_few_entries_too_many() -> None:
    order, kept = BlockOrder(), 20_000
    order.store(hashes_of(list(range(kept))))
    for first in range(0, 20 * kept, 100):
        changed = [block % (2 * kept) for block in range(first, first + 100)]
        order.remove(changed)
        order.store(hashes_of([(block + kept) % (2 * kept) for block in changed]))
        assert order.count == kept
        assert order.entries < 1.3 * kept


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
