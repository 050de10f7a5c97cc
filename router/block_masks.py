"""A bit mask of places for each block.

A dictionary that grows moves all its entries at once: 150 ms with 1.4 M blocks, measured. These
are many dictionaries of unequal shares, so that they grow one after the other: 1 ms each.
"""

from itertools import pairwise

import numpy as np

from wire.block_hash import Hashes

# A Python integer below 2**60 takes 32 bytes, one above 48. Among 50 M blocks 60 bits make one
# collision in a thousand such sets (n**2 / 2**61).
_SHIFT = 4
_PARTS = 128
_SLOTS = 4096
SLOT = _SLOTS - 1  # what of a key tells its slot


def keys_of(hashes: Hashes) -> list[int]:
    """Return what blocks are called here: the upper 60 bits of each hash."""
    keys: list[int] = (hashes >> np.uint64(_SHIFT)).tolist()
    return keys


def parted() -> tuple[list[dict[int, int]], list[dict[int, int]]]:
    """Return dictionaries for integers of random bits, and which of them each slot has.

    Their shares go from 1 to 2 in a geometric row: of 128 that double their sizes between 1 M and
    2 M blocks, one does so every 8000.
    """
    parts: list[dict[int, int]] = [{} for _ in range(_PARTS)]
    ends = np.round(_SLOTS * (np.exp2(np.linspace(0, 1, _PARTS + 1)) - 1)).astype(int)
    by_slot = [
        part
        for part, (start, end) in zip(parts, pairwise(ends), strict=True)
        for _ in range(end - start)
    ]
    return parts, by_slot


class BlockMasks:
    """Block -> mask, which is never zero."""

    def __init__(self) -> None:
        self._parts, self._by_slot = parted()

    def __len__(self) -> int:
        """Distinct blocks."""
        return sum(map(len, self._parts))

    def get(self, block: int) -> int:
        """Return a block's mask by its hash, 0 if it has none."""
        key = block >> _SHIFT
        return self._by_slot[key & SLOT].get(key, 0)

    def set(self, bit: int, hashes: Hashes) -> Hashes:
        """Set a bit in the masks of blocks; returns the blocks that did not have it."""
        by_slot = self._by_slot
        known: list[int] = []
        # Neighbours mostly have equal masks: one integer serves them all.
        old = new = 0
        for number, key in enumerate(keys_of(hashes)):
            masks = by_slot[key & SLOT]
            if key not in masks:
                masks[key] = bit
                continue
            mask = masks[key]
            if mask & bit:
                known.append(number)
                continue
            if mask != old:
                old, new = mask, mask | bit
            masks[key] = new
        return np.delete(hashes, known) if known else hashes

    def unset(self, bit: int, hashes: Hashes) -> list[int]:
        """Clear a bit in the masks of blocks; returns the keys of those that had it."""
        by_slot = self._by_slot
        gone: list[int] = []
        old = new = 0
        for key in keys_of(hashes):
            masks = by_slot[key & SLOT]
            mask = masks.get(key)
            if mask is None or not mask & bit:
                continue
            gone.append(key)
            if mask == bit:
                del masks[key]
                continue
            if mask != old:
                old, new = mask, mask ^ bit
            masks[key] = new
        return gone
