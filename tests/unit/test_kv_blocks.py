"""An engine's cache events as ours: copies, chains, groups, and what is left out."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kv_follower import Follower
from wire.block_hash import prefix_hashes, root_hash
from wire.kv_events import Stored
from worker.kv_blocks import AllBlocksCleared, BlockRemoved, BlockStored, EngineEvent, KvBlocks
from worker.kv_log import KvCursor, KvLog

SIZE = 4


def stored(
    engine_hashes: list[int | bytes],
    tokens: list[int],
    parent: int | bytes | None = None,
    **more: Any,
) -> BlockStored:
    return BlockStored(
        block_hashes=engine_hashes,
        parent_block_hash=parent,
        token_ids=tokens,
        **({"block_size": SIZE, "group_idx": 0} | more),
    )


def removed(*engine_hashes: int | bytes, **more: Any) -> BlockRemoved:
    return BlockRemoved(block_hashes=list(engine_hashes), **({"group_idx": 0} | more))


class Cache:
    """Normalises events, and checks after each step that a follower sees what is held."""

    def __init__(self) -> None:
        self.log = KvLog()
        self.blocks = KvBlocks(self.log, SIZE)
        self._cursor, self._follower = KvCursor(self.log), Follower()

    def step(self, *events: EngineEvent) -> set[int]:
        self.blocks.apply(events, 1.0)
        self._follower.read(self._cursor)
        assert self._follower.blocks == set(self.log)
        return set(self.log)


def ours(tokens: list[int], root: int = 0) -> set[int]:
    return set(prefix_hashes(tokens, SIZE, root).tolist())


def test_a_chain_continues_where_its_parent_ended() -> None:
    cache = Cache()
    assert cache.step(stored([1, 2], list(range(8)))) == ours(list(range(8)))
    assert cache.step(stored([3], [8, 9, 10, 11], parent=2)) == ours(list(range(12)))
    batch = cache.log.after(1)
    assert batch is not None
    change = batch.events[0].change
    assert isinstance(change, Stored)
    assert change.parent == prefix_hashes(list(range(8)), SIZE).tolist()[-1]


def test_copies_are_counted_until_the_last_is_gone() -> None:
    cache = Cache()
    whole = cache.step(stored([1, 2], list(range(8))))
    events = cache.log.last_id
    assert cache.step(stored([2], [4, 5, 6, 7], parent=1)) == whole
    assert cache.step(removed(2)) == whole
    assert cache.log.last_id == events
    assert cache.step(removed(2)) == ours([0, 1, 2, 3])
    assert cache.step(removed(1)) == set()


def test_each_medium_has_copies_of_its_own() -> None:
    cache = Cache()
    whole = cache.step(stored([1, 2], list(range(8)), medium="GPU"))
    # A cache behind the engine's own names the blocks alone.
    assert cache.step(stored([1, 2], [], medium="CPU", block_size=0)) == whole
    assert cache.step(removed(1, 2, medium="GPU")) == whole
    assert cache.step(removed(1, 2, medium="GPU")) == whole
    assert cache.step(removed(2, medium="CPU")) == ours([0, 1, 2, 3])
    assert cache.step(stored([2], [4, 5, 6, 7], parent=1)) == whole


def test_a_block_of_two_engine_hashes_is_held_until_both_are_gone() -> None:
    cache = Cache()
    tokens = [1, 2, 3, 4]
    # The same name with another path is another hash for vLLM.
    whole = cache.step(stored([1], tokens, lora_name="a"), stored([9], tokens, lora_name="a"))
    assert whole == ours(tokens, root_hash("a", None))
    assert cache.step(removed(1)) == whole
    assert cache.step(removed(9)) == set()


def test_adapter_and_salt_are_the_root_of_a_chain() -> None:
    cache = Cache()
    tokens = list(range(8))
    assert cache.step(
        stored([1, 2], tokens, extra_keys=[["tenant"], None]),
        stored([3, 4], tokens, lora_name="a", extra_keys=[["a"], ["a"]]),
        stored([5, 6], tokens, lora_name="a", extra_keys=[["a", "tenant"], ["a"]]),
        stored([7], [8, 9, 10, 11], parent=6, lora_name="a", extra_keys=[["a"]]),
    ) == (
        ours(tokens, root_hash(None, "tenant"))
        | ours(tokens, root_hash("a", None))
        | ours(list(range(12)), root_hash("a", "tenant"))
    )


def test_the_adapter_that_stands_for_none_leaves_no_trace() -> None:
    blocks = KvBlocks(KvLog(), 4, no_adapter="none")
    tokens = list(range(8))
    event = stored([1, 2], tokens, lora_name="none", extra_keys=[["none", "tenant"], ["none"]])
    blocks.apply([event], 0.0)
    assert all(it in blocks.log for it in ours(tokens, root_hash(None, "tenant")))


@pytest.mark.parametrize("keys", [["picture", 3]], ids=["image"])
def test_what_stands_for_more_than_tokens_is_private_from_there_on(keys) -> None:
    cache = Cache()
    tokens = list(range(12))
    event = stored([1, 2, 3], tokens, extra_keys=[None, [keys], None])
    assert cache.step(event) == ours(tokens[:4])
    assert cache.step(stored([4], [1, 2, 3, 4], parent=3)) == ours(tokens[:4])
    assert cache.step(removed(3, 2)) == ours(tokens[:4])
    assert cache.log.ignored == Counter(private=2, parent=1)


@pytest.mark.parametrize("keys", [[b"digest"], [["image", 0], "salt"], ["salt", b"digest"]])
def test_a_private_first_block_hides_the_prompt(keys) -> None:
    cache = Cache()
    assert cache.step(stored([1, 2], list(range(8)), extra_keys=[keys, None])) == set()
    assert cache.log.ignored["private"] == 2


def test_what_follows_an_unknown_block_is_left_out_and_counted() -> None:
    cache = Cache()
    cache.step(stored([3], [1, 2, 3, 4], parent=2), removed(2), removed(3))
    assert (len(cache.log), cache.log.last_id) == (0, 0)
    assert cache.log.ignored["parent"] == 1


def test_blocks_of_another_size_are_left_out_and_counted() -> None:
    cache = Cache()
    assert cache.step(stored([1], list(range(8)), block_size=8), stored([2, 3], [1] * 4)) == set()
    assert cache.log.ignored["size"] == 3


def test_one_group_of_full_attention_is_followed() -> None:
    cache = Cache()
    tokens = list(range(8))
    window: dict[str, Any] = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    full: dict[str, Any] = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    assert cache.step(stored([1, 2], tokens, **window)) == set()
    assert cache.log.ignored == Counter(group=2)
    whole = cache.step(stored([1, 2], tokens, **full))
    assert whole == ours(tokens)
    third = full | {"group_idx": 2}
    assert cache.step(stored([1, 2], tokens, **third), stored([1, 2], tokens, **window)) == whole
    assert cache.step(removed(1, group_idx=0), removed(2, group_idx=2)) == whole
    assert cache.step(removed(2, group_idx=1)) == ours(tokens[:4])


def test_what_another_node_holds_is_not_ours() -> None:
    cache = Cache()
    assert cache.step(stored([1], [1, 2, 3, 4], locality="REMOTE")) == set()
    cache.step(stored([1], [1, 2, 3, 4]))
    assert cache.step(removed(1, locality="REMOTE")) == ours([1, 2, 3, 4])


def test_clearing_forgets_copies_too() -> None:
    cache = Cache()
    twice = stored([1], [1, 2, 3, 4])
    cache.step(twice, twice)
    assert cache.step(AllBlocksCleared(), twice) == ours([1, 2, 3, 4])
    assert cache.step(removed(1)) == set()


def test_events_are_read_as_vllm_writes_them() -> None:
    sent = {
        "type": "BlockStored",
        "block_hashes": [2**64 - 1],
        "parent_block_hash": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 4,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [["tenant"]],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        "session_id": "not known here",
    }
    gone = {"type": "BlockRemoved", "block_hashes": [b"full"], "medium": "GPU", "group_idx": 0}
    data = msgspec.msgpack.encode([sent, gone, {"type": "AllBlocksCleared"}])
    events = msgspec.msgpack.decode(data, type=list[EngineEvent])
    assert Cache().step(events[0]) == ours([1, 2, 3, 4], root_hash(None, "tenant"))
    assert Cache().step(*events) == set()


class Engine:
    """Physical copies of chains of blocks, as an engine keeps and tells them."""

    def __init__(self) -> None:
        self.copies: Counter[tuple[str, int]] = Counter()
        self.tokens: dict[int, list[int]] = {}

    def prompt(self, family: int, blocks: int, held: int, medium: str) -> BlockStored | None:
        """Blocks `held` to `blocks` of a prompt get a copy each, if what precedes is held."""
        prompt = [family] * SIZE * blocks
        chain = [10 * family + depth for depth in range(blocks)]
        parent = chain[held - 1] if 0 < held < blocks else None
        if held >= blocks or (parent is not None and not self._held(parent)):
            return None
        for at in range(held, blocks):
            self.copies[medium, chain[at]] += 1
            self.tokens[chain[at]] = prompt[: (at + 1) * SIZE]
        return stored(list(chain[held:]), prompt[held * SIZE :], parent, medium=medium)

    def evict(self, choice: int) -> BlockRemoved | None:
        held = sorted(+self.copies)
        if not held:
            return None
        medium, block = held[choice % len(held)]
        self.copies[medium, block] -= 1
        return removed(block, medium=medium)

    def held(self) -> set[int]:
        """Our hashes of all that has a copy."""
        return {prefix_hashes(self.tokens[block], SIZE).tolist()[-1] for _, block in +self.copies}

    def _held(self, block: int) -> bool:
        return any(other == block for _, other in +self.copies)


STEPS = st.lists(
    st.lists(
        st.one_of(
            st.tuples(
                st.integers(0, 2), st.integers(1, 5), st.integers(0, 4),
                st.sampled_from(["GPU", "CPU"]),
            ),
            st.integers(0, 20),
            st.none(),
        ),
        max_size=4,
    ),
    max_size=25,
)  # fmt: skip


@given(STEPS)
def test_whatever_an_engine_does_its_held_blocks_are_ours(steps) -> None:
    engine, cache = Engine(), Cache()
    for step in steps:
        events: list[EngineEvent | None] = []
        for action in step:
            if action is None:
                engine.copies.clear()
                events.append(AllBlocksCleared())
            elif isinstance(action, int):
                events.append(engine.evict(action))
            else:
                events.append(engine.prompt(*action))
        assert cache.step(*(event for event in events if event)) == engine.held()
    assert not cache.log.ignored.total()
