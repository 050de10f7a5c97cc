"""Prefix hashes of KV blocks."""

import random
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.block_hash import extend_hashes, pack_hashes, prefix_hashes, root_hash, unpack_hashes

KNOWN_ROOT = 8575331672510078544
KNOWN = [15279862640645444053, 7145153910703113751]
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=200)


def by_hand(tokens: list[int], block_size: int, root: int = 0) -> list[int]:
    """The docstring's formula, one integer at a time."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    state, keys = 1337, []
    for _ in range(block_size):
        state = (state + golden) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        keys.append((z ^ (z >> 31)) | 1)
    found, chain = [], root
    for block in range(len(tokens) // block_size):
        part = tokens[block * block_size : (block + 1) * block_size]
        x = sum((t + 1) * k for t, k in zip(part, keys, strict=True)) & mask
        x ^= ((block + 1) * golden) & mask
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x ^= x >> 33
            x = (x * factor) & mask
        x ^= x >> 33
        chain = (chain + x) & mask
        found.append(chain)
    return found


@given(TOKENS, st.sampled_from([1, 4, 16, 32]), st.integers(0, 2**64 - 1))
def test_the_hashes_are_those_of_the_formula(tokens, block_size, root) -> None:
    assert prefix_hashes(tokens, block_size, root).tolist() == by_hand(tokens, block_size, root)


@pytest.mark.parametrize("blocks", [1, 4, 5, 40])
def test_few_and_many_blocks_are_hashed_alike_and_in_silence(blocks) -> None:
    tokens = [2**31 - 1 - at for at in range(4 * blocks)]
    root = 2**64 - 1
    assert prefix_hashes(tokens, 4, root).tolist() == by_hand(tokens, 4, root)


def test_the_hashes_never_change_between_versions() -> None:
    assert root_hash("adapter", "tenant") == KNOWN_ROOT
    assert prefix_hashes(list(range(8)), 4).tolist() == KNOWN


@given(TOKENS, st.integers(0, 12))
def test_a_prompt_may_be_hashed_in_pieces(tokens, cut) -> None:
    whole = prefix_hashes(tokens, 4)
    cut = min(cut, len(whole))
    parent = int(whole[cut - 1]) if cut else 0
    rest = extend_hashes(parent, cut, tokens[cut * 4 :], 4)
    assert rest.tolist() == whole[cut:].tolist()


@pytest.mark.parametrize("kind", [list, lambda it: array("i", it), lambda it: np.array(it, "i4")])
def test_every_form_of_token_ids_has_the_same_hashes(kind) -> None:
    tokens = [random.randrange(150_000) for _ in range(100)]
    assert prefix_hashes(kind(tokens), 16).tolist() == prefix_hashes(tokens, 16).tolist()


def test_a_difference_in_one_block_changes_it_and_all_after_it() -> None:
    tokens = list(range(64))
    other = [*tokens[:20], 99, *tokens[21:]]
    same = prefix_hashes(tokens, 16) == prefix_hashes(other, 16)
    assert same.tolist() == [True, False, False, False]


def test_equal_blocks_at_other_places_differ() -> None:
    hashes = prefix_hashes([7] * 160, 16)
    steps = np.diff(hashes, prepend=np.uint64(0))
    assert len(set(hashes.tolist())) == len(set(steps.tolist())) == 10


def test_swapped_blocks_and_swapped_tokens_differ() -> None:
    first, second = list(range(16)), list(range(100, 116))
    end = int(prefix_hashes(first + second, 16)[-1])
    assert end != int(prefix_hashes(second + first, 16)[-1])
    assert prefix_hashes([1, 2], 2).tolist() != prefix_hashes([2, 1], 2).tolist()


def test_adapter_and_salt_each_set_a_prompt_apart() -> None:
    roots = [
        root_hash(*it)
        for it in [(None, None), ("a", None), (None, "a"), ("ab", "c"), ("a", "bc"), ("b", None)]
    ]
    assert len(set(roots)) == len(roots)
    assert roots[0] == root_hash("", "") == 0


def test_a_partial_block_has_no_hash() -> None:
    assert len(prefix_hashes([1] * 15, 16)) == 0
    assert len(prefix_hashes([1] * 31, 16)) == 1


def test_hashes_survive_their_bytes() -> None:
    hashes = prefix_hashes(list(range(64)), 16)
    assert unpack_hashes(pack_hashes(hashes)).tolist() == hashes.tolist()
    with pytest.raises(ValueError, match="multiple"):
        unpack_hashes(b"1234567")
