"""Which places hold which prefix: a bit mask of places for each block.

A place that holds a block is taken to hold all before it; where that is not so, the overlap found
is of one of the prefixes it does hold.

A block takes 70 bytes and 8 more for each place that holds it, measured with 1 M blocks and 64
places (benchmarks/router_speed.py): key and entry of a dictionary, and its rank in the place's
order, with up to 12 for what was there before. Masks are shared among neighbours. A fleet of 1000
places with 50,000 blocks of their own each takes 4 GB, so that it wants larger blocks.
"""

from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.block_masks import BlockMasks
from router.block_order import BlockOrder
from router.router import Place
from runtime.errors import InternalError
from wire.block_hash import NO_HASHES, Hashes, pack_hashes, unpack_hashes

_SWEEP_BLOCKS = 4096
_FEW_BITS = 8


class _Held:
    """What one place holds. `pruned`: it had too much, and still has more than is to be kept."""

    __slots__ = ("bit", "number", "order", "pruned", "row")

    def __init__(self, row: int, number: int) -> None:
        self.row = row
        self.number = number
        self.bit = 1 << number
        self.order = BlockOrder()
        self.pruned = False


class PrefixIndex:
    """Blocks by place, at most `max_blocks` of each.

    When a place has more, those that were stored first are forgotten down to `prune_ratio` of it,
    and of blocks that were stored together the deepest first, so that chains are cut at their
    ends, some thousand with each change. The order is of what the place stored, not of what
    requests used: the place itself tells of what it evicts, so that this bound is only for places
    larger than expected.

    Dropping or clearing a place takes no time: its bit is given to nobody until it has been swept
    from all masks, a few blocks with each later change.
    """

    def __init__(self, max_blocks: int = 2**20, prune_ratio: float = 0.8) -> None:
        self.evicted = 0
        self._max_blocks = max_blocks
        self._kept_blocks = int(max_blocks * prune_ratio)
        self._masks = BlockMasks()
        self._held: dict[Place, _Held] = {}
        self._live = 0
        self._rows = np.zeros(0, np.intp)  # by bit number
        self._free_numbers: list[int] = []
        self._dead: list[_Held] = []

    def __len__(self) -> int:
        """Distinct blocks, those of dropped places included until they are swept."""
        return len(self._masks)

    def add(self, place: Place, row: int) -> None:
        """Know a place, which holds nothing; `row` is what `overlaps_by_row` calls it."""
        self.drop(place)
        if self._free_numbers:
            number = self._free_numbers.pop()
        else:
            number = len(self._rows)
            self._rows = np.append(self._rows, 0)
        self._rows[number] = row
        held = self._held[place] = _Held(row, number)
        self._live |= held.bit

    def drop(self, place: Place) -> None:
        """Forget a place and all it holds. Unknown ones are ignored."""
        held = self._held.pop(place, None)
        if held is not None:
            self._live &= ~held.bit
            self._dead.append(held)

    def clear(self, place: Place) -> None:
        """Forget all that a place holds."""
        held = self._held.get(place)
        if held is not None and held.order.entries:
            self.add(place, held.row)

    def store(self, place: Place, hashes: Hashes) -> Hashes:
        """Note that a place holds these blocks; returns those that it did not hold before.

        Blocks of a place that is not known are ignored.
        """
        held = self._held.get(place)
        if held is None:
            return NO_HASHES
        self.sweep(2 * len(hashes))
        fresh = self._masks.set(held.bit, hashes)
        held.order.store(fresh[::-1])
        if held.pruned or held.order.count > self._max_blocks:
            self._evict(held, _SWEEP_BLOCKS + 2 * len(fresh))
        return fresh

    def remove(self, place: Place, hashes: Hashes) -> int:
        """Note that a place holds these no more; returns how many of them it did hold."""
        held = self._held.get(place)
        if held is None:
            return 0
        self.sweep(2 * len(hashes))
        gone = self._masks.unset(held.bit, hashes)
        held.order.remove(gone)
        return len(gone)

    def sweep(self, blocks: int = _SWEEP_BLOCKS) -> None:
        """Take up to `blocks` blocks of dropped places out of the masks."""
        while self._dead and blocks > 0:
            held = self._dead[-1]
            part = held.order.pop_entries(blocks)
            self._masks.unset(held.bit, part)
            blocks -= len(part)
            if not held.order.entries:
                self._dead.pop()
                self._free_numbers.append(held.number)

    def row(self, place: Place) -> int | None:
        """Return what `add` was told, None for a place that is not known."""
        held = self._held.get(place)
        return None if held is None else held.row

    def count(self, place: Place) -> int:
        """How many blocks a place holds."""
        held = self._held.get(place)
        return 0 if held is None else held.order.count

    def counts(self) -> dict[Place, int]:
        """How many blocks each place holds."""
        return {place: held.order.count for place, held in self._held.items()}

    def blocks(self, place: Place) -> Hashes:
        """All blocks of a place, those stored first at the front."""
        held = self._held.get(place)
        return NO_HASHES if held is None else held.order.hashes()

    def overlaps(self, hashes: Hashes) -> dict[Place, int]:
        """Return how many blocks of a prompt each place holds, places without any left out."""
        places = {held.number: place for place, held in self._held.items()}
        return {
            places[number]: depth for mask, depth in self._search(hashes) for number in _bits(mask)
        }

    def overlaps_by_row(self, hashes: Hashes, rows: int) -> NDArray[np.int64]:
        """Return how many blocks of a prompt each row's place holds, int64 [rows]."""
        overlaps = np.zeros(rows, np.int64)
        row = self._rows.item
        for mask, depth in self._search(hashes):
            numbers = _bits(mask)
            if isinstance(numbers, list):
                for number in numbers:
                    overlaps[row(number)] = depth
            else:
                overlaps[self._rows[numbers]] = depth
        return overlaps

    def snapshot(self) -> bytes:
        """Return all places with their blocks, 8 bytes a block."""
        return msgspec.msgpack.encode(
            [(place, pack_hashes(self.blocks(place))) for place in self._held]
        )

    def restore(self, snapshot: bytes) -> None:
        """Take over what a snapshot says of the places that are known here.

        Raises InternalError when it is malformed; then nothing has changed.
        """
        try:
            parts = msgspec.msgpack.decode(snapshot, type=list[tuple[Place, bytes]])
            known = [(place, unpack_hashes(data)) for place, data in parts]
        except (msgspec.DecodeError, ValueError) as error:
            raise InternalError(f"malformed router snapshot: {error}") from error
        for place, hashes in known:
            if place in self._held:
                self.clear(place)
                # `store` takes the deepest first; these stand in the order to be kept.
                self.store(place, hashes[::-1])

    def _search(self, hashes: Hashes) -> list[tuple[int, int]]:
        """Return (mask, depth) of the places that hold `depth` blocks, in one mask or several.

        Gallops until no place is left, then halves each interval in which places were lost. With p
        boundaries in n blocks that is O(p log n) look-ups.
        """
        if not len(hashes):
            return []
        block, get = hashes.item, self._masks.get
        last = len(hashes) - 1
        low, step, mask = 0, 1, get(block(0)) & self._live
        lossy = []  # (low, high, mask at low, mask at high)
        while mask and low < last:
            high = min(last, low + step)
            left = mask & get(block(high))
            if left != mask:
                lossy.append((low, high, mask, left))
            low, mask = high, left
            step *= 2
        found = [(mask, low + 1)] if mask else []
        while lossy:
            low, high, mask, left = lossy.pop()
            if high - low == 1:
                found.append((mask & ~left, high))
                continue
            middle = (low + high) // 2
            # Who holds `high` is taken to hold this one.
            between = (get(block(middle)) | left) & mask
            if between != mask:
                lossy.append((low, middle, mask, between))
            if left != between:
                lossy.append((middle, high, between, left))
        return found

    def _evict(self, held: _Held, blocks: int) -> None:
        held.pruned = True
        surplus = held.order.count - self._kept_blocks
        first = held.order.pop_oldest(min(surplus, blocks))
        self.evicted += len(self._masks.unset(held.bit, first))
        held.pruned = len(first) < surplus


@lru_cache(maxsize=256)  # places that share a system prompt are asked for with every request
def _bits(mask: int) -> "list[int] | NDArray[np.intp]":
    """Return the numbers of the bits that are set; not to be changed."""
    if mask.bit_count() > _FEW_BITS:
        data = np.frombuffer(mask.to_bytes((mask.bit_length() + 7) // 8, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(data, bitorder="little"))
    numbers = []
    while mask:
        number = mask.bit_length() - 1
        numbers.append(number)
        mask ^= 1 << number
    return numbers
