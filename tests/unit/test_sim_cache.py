"""The simulated KV cache: sharing, eviction, and the invariants between them."""

from hypothesis import given
from hypothesis import strategies as st

from worker.sim_cache import PrefixCache, Root, block_hash, prefix_hashes

SIZE = 4


def fill(cache: PrefixCache, tokens: list[int]) -> list[int]:
    """Hold the prompt's full blocks as a sequence does; returns their hashes."""
    hashes = prefix_hashes(tokens, SIZE)
    found = cache.match(hashes)
    assert cache.take(hashes[:found], len(hashes) - found)
    for at in range(found, len(hashes)):
        parent = hashes[at - 1] if at else None
        cache.store(hashes[at], parent, tokens[at * SIZE : (at + 1) * SIZE])
    return hashes


def test_a_hash_depends_on_all_tokens_before_and_on_adapter_and_salt() -> None:
    first = prefix_hashes([1, 2, 3, 4, 5, 6, 7, 8, 9], SIZE)
    assert len(first) == 2
    assert prefix_hashes([9, 2, 3, 4, 5, 6, 7, 8], SIZE)[1] != first[1]
    for root in (Root(salt="a"), Root(lora_name="a"), Root("a", "a")):
        assert prefix_hashes([1, 2, 3, 4, 5, 6, 7, 8], SIZE, root)[1] != first[1]
    assert prefix_hashes([1, 2, 3, 4, 5, 6, 7, 8], SIZE) == first


def test_hashes_are_the_same_in_every_process() -> None:
    assert block_hash(None, [1, 2, 3, 4]) == 11384811893105916616


def test_a_prefix_is_found_up_to_its_first_difference() -> None:
    cache = PrefixCache(10)
    hashes = fill(cache, list(range(12)))
    cache.give_back(hashes, 0)
    assert cache.match(prefix_hashes([*range(8), 99, 99, 99, 99], SIZE)) == 2
    assert cache.match(prefix_hashes([99, *range(1, 12)], SIZE)) == 0


def test_held_blocks_are_never_evicted_and_idle_ones_oldest_first() -> None:
    removed: list[int] = []
    cache = PrefixCache(4, on_removed=removed.append)
    old = fill(cache, [1, 1, 1, 1])
    cache.give_back(old, 0)
    new = fill(cache, [2, 2, 2, 2])
    cache.give_back(new, 0)
    held = fill(cache, [3, 3, 3, 3, 4, 4, 4, 4])
    assert cache.take([], 1)
    assert removed == old
    assert cache.take([], 1)
    assert removed == old + new
    assert not cache.take([], 1)
    assert cache.match(held) == 2


def test_a_sequence_gives_up_its_last_blocks_first() -> None:
    removed: list[int] = []
    cache = PrefixCache(3, on_removed=removed.append)
    hashes = fill(cache, list(range(12)))
    cache.give_back(hashes, 0)
    assert cache.take([], 2)
    assert removed == [hashes[2], hashes[1]]
    assert cache.match(hashes) == 1


def test_taking_is_all_or_nothing() -> None:
    cache = PrefixCache(3)
    hashes = fill(cache, list(range(8)))
    cache.give_back(hashes, 0)
    assert not cache.take(hashes, 2)
    assert cache.live_blocks == 0
    assert cache.take(hashes, 1)
    assert cache.live_blocks == 3


def test_two_sequences_that_computed_the_same_block_share_it() -> None:
    cache = PrefixCache(4)
    tokens = [7, 7, 7, 7]
    (block,) = prefix_hashes(tokens, SIZE)
    assert cache.take([], 2)
    cache.store(block, None, tokens)
    cache.store(block, None, tokens)
    assert cache.live_blocks == 1
    cache.give_back([block], 0)
    assert cache.live_blocks == 1
    cache.give_back([block], 0)
    assert cache.live_blocks == 0
    assert cache.stored_blocks == 1
    cache.clear()
    assert cache.stored_blocks == 0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=60),
    st.integers(1, 12),
)
def test_the_cache_never_holds_more_than_it_has_and_loses_nothing(
    steps: list[tuple[int, int, bool]], capacity: int
) -> None:
    stored: set[int] = set()
    cache = PrefixCache(
        capacity, on_stored=lambda block, *_: stored.add(block), on_removed=stored.remove
    )
    holders: list[list[int]] = []
    for family, blocks, free in steps:
        if free and holders:
            cache.give_back(holders.pop(0), 0)
        tokens = [family] * SIZE * blocks
        hashes = prefix_hashes(tokens, SIZE)
        found = cache.match(hashes)
        if cache.take(hashes[:found], blocks - found):
            for at in range(found, blocks):
                cache.store(hashes[at], hashes[at - 1] if at else None, tokens[:SIZE])
            holders.append(hashes)
        assert cache.stored_blocks == len(stored) <= capacity
        assert cache.live_blocks == len({block for held in holders for block in held})
    for held in holders:
        cache.give_back(held, 0)
    assert cache.live_blocks == 0
