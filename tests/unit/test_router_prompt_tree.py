"""The tree of running prompts against a naive recount, and its size."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.prompt_tree import PromptTree
from wire.block_hash import NO_HASHES, Hashes, prefix_hashes

ROWS = 3
# Prompts that part at few tokens, so that they share prefixes.
TOKENS = st.lists(st.integers(0, 1), max_size=10)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "computed", "remove"]),
        st.integers(0, ROWS - 1),
        TOKENS,
        st.integers(0, 12),
    ),
    max_size=60,
)


def chain(*tokens: int) -> Hashes:
    """A prompt's blocks, one token each."""
    return prefix_hashes(list(tokens), 1)


@dataclass(eq=False)
class Prompt:
    row: int
    hashes: Hashes
    known: int
    computing: bool = True


def blocks_of(prompts: list[Prompt], row: int) -> set[int]:
    return {block for it in prompts if it.row == row for block in it.hashes.tolist()}


def computing_of(prompts: list[Prompt], row: int) -> set[int]:
    here = [it for it in prompts if it.row == row and it.computing]
    return {block for it in here for block in it.hashes[it.known :].tolist()}


def step(tree: PromptTree, prompts: list[Prompt], kind: str, prompt: Prompt) -> None:
    """Do to the tree what a step says, and compare what it answers."""
    number = prompt.known
    if kind == "add":
        new = set(prompt.hashes.tolist()) - blocks_of(prompts, prompt.row)
        assert tree.add(prompt.row, prompt.hashes, prompt.known) == len(new)
        prompts.append(prompt)
    elif prompts:
        old = prompts[number % len(prompts)]
        if old.computing:
            tree.computed(old.row, old.hashes, old.known)
            old.computing = False
        if kind == "remove":
            prompts.remove(old)
            gone = set(old.hashes.tolist()) - blocks_of(prompts, old.row)
            assert tree.remove(old.row, old.hashes) == len(gone)


@given(STEPS, TOKENS)
def test_it_says_what_a_recount_of_its_prompts_says(steps, tokens) -> None:
    tree, prompts, asked = PromptTree(), [], chain(*tokens)
    for kind, row, others, number in steps:
        step(tree, prompts, kind, Prompt(row, chain(*others), number))
        used, computing, depths = [], [], [0] * ROWS
        for at in range(ROWS):
            here = blocks_of(prompts, at)
            used.append(sum(block in here for block in asked.tolist()))
            left = computing_of(prompts, at)
            computing.append(sum(block in left for block in asked.tolist()))
        assert [tree.shared(at, asked) for at in range(ROWS)] == list(
            zip(used, computing, strict=True)
        )
        for rows, depth in tree.depths(asked):
            for at in rows:
                depths[at] = depth
        assert depths == used
    while prompts:
        step(tree, prompts, "remove", Prompt(0, NO_HASHES, 0))
    assert not tree


def test_a_prompt_that_outlives_those_that_parted_from_it_is_one_run_again() -> None:
    tree, prompt = PromptTree(), chain(*range(200))
    tree.add(0, prompt, 0)
    tree.computed(0, prompt, 0)
    for length in range(1, 200):
        other = chain(*range(length), 1000)
        tree.add(0, other, length)
        tree.computed(0, other, length)
        tree.remove(0, other)
    assert list(tree.depths(prompt)) == [([0], 200)]
    tree.remove(0, prompt)
    assert not tree


def test_hashes_that_collide_behind_different_ones_are_added_and_taken_out() -> None:
    tree = PromptTree()
    one, other, third = (
        np.array(hashes, np.uint64) for hashes in ([1, 2, 3, 4], [1, 9, 3, 4], [1, 2, 7])
    )
    added = [tree.add(0, it, 0) for it in (one, other, third)]
    for it in (one, other, third):
        tree.computed(0, it, 0)
    assert added == [4, 3, 1]
    assert [tree.remove(0, it) for it in (one, other, third)] == [2, 3, 3]
    assert not tree
