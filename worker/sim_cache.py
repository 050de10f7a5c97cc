"""The simulated engine's KV cache: blocks with reference counts, a prefix index and LRU eviction.

A block is private while it fills. A full block is stored under the hash of all tokens up to its
end; it can be shared, and stays for later requests until its place is needed.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from wire.block_hash import root_hash


class Root(NamedTuple):
    """What sets prompts of the same tokens apart; each has its own blocks."""

    lora_name: str | None = None
    salt: str | None = None


NO_ROOT = Root()

StoredListener = Callable[[int, int | None, Sequence[int], Root], None]
"""Called with (hash, parent hash or None, the block's token ids, its prompt's root)."""
RemovedListener = Callable[[int], None]
"""Called with the hash of the block that was evicted."""


def block_hash(parent: int | None, token_ids: Sequence[int], root: Root = NO_ROOT) -> int:
    """Return the unsigned 64-bit hash of a full block that follows `parent`.

    The same tokens have the same hash in every process. `root` counts for the first block, and
    through it for the chain.
    """
    state = blake2b(array("I", token_ids).tobytes(), digest_size=8)
    before = root_hash(*root) if parent is None else parent
    if before:
        state.update(before.to_bytes(8, "little"))
    return int.from_bytes(state.digest(), "little")


def prefix_hashes(token_ids: Sequence[int], block_size: int, root: Root = NO_ROOT) -> list[int]:
    """Return the hashes of all full blocks of `token_ids`, in order."""
    hashes: list[int] = []
    parent: int | None = None
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size], root)
        hashes.append(parent)
    return hashes


class PrefixCache:
    """A fixed number of blocks. Its caller keeps, per sequence, what it holds and gives it back.

    `capacity` is in blocks. At any time: private + stored blocks <= capacity.
    """

    def __init__(
        self,
        capacity: int,
        *,
        on_stored: StoredListener | None = None,
        on_removed: RemovedListener | None = None,
    ) -> None:
        self.capacity = capacity
        self._on_stored = on_stored
        self._on_removed = on_removed
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def live_blocks(self) -> int:
        """Blocks that some sequence holds."""
        return self._private + len(self._references) - len(self._idle)

    @property
    def stored_blocks(self) -> int:
        """Blocks that can be found by their hash, held or not."""
        return len(self._references)

    def match(self, hashes: Iterable[int]) -> int:
        """Return how many leading hashes are stored."""
        count = 0
        for block in hashes:
            if block not in self._references:
                break
            count += 1
        return count

    def take(self, hashes: Sequence[int], private: int) -> bool:
        """Hold the stored blocks `hashes` and `private` new ones; all of it or nothing."""
        reused = sum(block in self._idle for block in hashes)
        if self.live_blocks + reused + private > self.capacity:
            return False
        for block in hashes:
            self._references[block] += 1
            self._idle.pop(block, None)
        self._private += private
        while self._private + len(self._references) > self.capacity:
            self._evict()
        return True

    def store(
        self, block: int, parent: int | None, token_ids: Sequence[int], root: Root = NO_ROOT
    ) -> None:
        """Turn one private block of the caller, now full, into a stored one it still holds."""
        self._private -= 1
        if block in self._references:
            self._references[block] += 1
            self._idle.pop(block, None)
            return
        self._references[block] = 1
        if self._on_stored:
            self._on_stored(block, parent, token_ids, root)

    def give_back(self, hashes: Sequence[int], private: int) -> None:
        """Let go of what a sequence held; its last blocks are evicted before its first ones."""
        self._private -= private
        for block in reversed(hashes):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._idle[block] = None

    def clear(self) -> None:
        """Forget every stored block that nobody holds."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        del self._references[block]
        if self._on_removed:
            self._on_removed(block)
