"""An engine's cache events, in its own hashes, turned into those of a KvLog.

The events are vLLM's, as it publishes them; the simulated engine speaks the same way. Engines
count physical copies, per medium and group of layers; here a block is held from its first copy to
its last.

A hybrid model keeps a prompt in several groups of layers. The first group of full attention is
followed alone: it holds every block of a prefix as long as the prefix is of use. What the others
lose first (windows that have moved on) is not seen, so that a prefix may look longer than it is.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from wire.block_hash import Hashes, extend_hashes, root_hash
from worker.kv_log import KvLog

EngineHash: TypeAlias = int | bytes
"""vLLM's: the low 64 bits of a SHA-256, or all of it."""

_ACCELERATOR = (None, "GPU")
_FULL_ATTENTION = (None, "full_attention", "mla_attention", "sink_full_attention")
_ELSEWHERE = "REMOTE"


class BlockStored(msgspec.Struct, tag=True, frozen=True, kw_only=True, gc=False):
    """Blocks that follow `parent_block_hash` (None: the prompt's begin) got one more copy.

    `token_ids` are those of all `block_hashes`, `block_size` each; caches behind the engine's own
    leave them out for blocks that were told before. `extra_keys` is per block what else its hash
    stands for: the adapter's name, then (id, offset) of images and the like, then on the prompt's
    first block the cache salt, then digests of embeddings.
    """

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None = None
    token_ids: list[int]
    block_size: int
    lora_name: str | None = None
    medium: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, frozen=True, kw_only=True, gc=False):
    """Blocks have one copy less."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, frozen=True, gc=False):
    """No block is held any more."""


EngineEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class KvBlocks:
    """The engine's blocks of one data-parallel rank, and the log that they are told to.

    What cannot be followed is left out and counted in `log.ignored`: blocks after an unknown
    "parent" (their beginning was missed), of another "size" than `block_size`, of a "group" where
    none has full attention, and "private" ones, whose hash stands for more than tokens, adapter
    and salt. What follows a block that is left out has no known parent. `no_adapter` is the name
    of an adapter that stands for none.
    """

    def __init__(self, log: KvLog, block_size: int, no_adapter: str = "") -> None:
        self.log = log
        self._no_adapter = no_adapter
        self._block_size = block_size
        self._group: int | None = None
        # Memory per block: one entry here and one in the log. By medium: the engine's hash of a
        # block's first copy to ours; further copies are rare and counted beside it.
        self._first: dict[str, dict[EngineHash, int]] = {"": {}}
        self._more: Counter[tuple[str, EngineHash]] = Counter()
        # Other media and other hashes of the engine that stand for the same block of ours.
        self._others: Counter[int] = Counter()

    def apply(self, events: Sequence[EngineEvent], happened_s: float) -> None:
        """Follow the events of one engine step; `happened_s` in seconds since the Unix epoch."""
        try:
            for event in events:
                match event:
                    case BlockStored():
                        self._store(event)
                    case BlockRemoved():
                        self._remove(event)
                    case AllBlocksCleared():
                        self._clear()
        finally:
            self.log.commit(happened_s)

    def clear(self, happened_s: float) -> None:
        """Know nothing any more: events were missed for good."""
        self.apply((AllBlocksCleared(),), happened_s)

    def _store(self, event: BlockStored) -> None:
        if event.locality == _ELSEWHERE or not self._follows(event):
            return
        medium = _medium(event.medium)
        if not event.token_ids:
            self._store_known(event.block_hashes, medium)
            return
        count, size = len(event.block_hashes), self._block_size
        if event.block_size != size or len(event.token_ids) != count * size:
            self.log.ignored["size"] += count
            return
        public, salt = _plain_blocks(event)
        lora_name = None if event.lora_name == self._no_adapter else event.lora_name
        self.log.ignored["private"] += count - public
        if event.parent_block_hash is None:
            parent, depth = 0, 0
            root = root_hash(lora_name, salt)
        else:
            root = parent = self._prefix(event.parent_block_hash)
            if not parent:
                self.log.ignored["parent"] += public
                return
            depth = self.log.depth(parent) + 1
        hashes = extend_hashes(root, depth, event.token_ids[: public * size], size)
        self._hold(event.block_hashes, hashes, parent, lora_name or "", medium)

    def _follows(self, event: BlockStored) -> bool:
        group = event.group_idx or 0
        if self._group is None:
            if event.kv_cache_spec_kind not in _FULL_ATTENTION:
                self.log.ignored["group"] += len(event.block_hashes)
                return False
            self._group = group
        return group == self._group

    def _store_known(self, block_hashes: Sequence[EngineHash], medium: str) -> None:
        """Count copies of blocks that were told with their tokens before."""
        for engine_hash in block_hashes:
            prefix = self._prefix(engine_hash)
            if prefix:
                self._copied(engine_hash, prefix, medium)
            else:
                self.log.ignored["parent"] += 1

    def _hold(
        self,
        block_hashes: Sequence[EngineHash],
        hashes: Hashes,
        parent: int,
        lora_name: str,
        medium: str,
    ) -> None:
        """Count copies; what was not held is stored, each run of it after what precedes it."""
        log, run = self.log, []
        for engine_hash, prefix in zip(block_hashes, hashes.tolist(), strict=False):
            if self._copied(engine_hash, prefix, medium):
                run.append(prefix)
                continue
            if run:
                log.store(run, parent, lora_name, medium)
                run = []
            parent = prefix
        if run:
            log.store(run, parent, lora_name, medium)

    def _copied(self, engine_hash: EngineHash, prefix: int, medium: str) -> bool:
        """Count one more copy; returns whether it is the first of all."""
        first = self._first.setdefault(medium, {})
        if engine_hash in first:
            self._more[medium, engine_hash] += 1
            return False
        first[engine_hash] = prefix
        if prefix in self.log:
            self._others[prefix] += 1
            return False
        return True

    def _remove(self, event: BlockRemoved) -> None:
        if event.locality == _ELSEWHERE or (event.group_idx or 0) != self._group:
            return
        medium = _medium(event.medium)
        first = self._first.get(medium, {})
        for engine_hash in event.block_hashes:
            if self._more and _take_one(self._more, (medium, engine_hash)):
                continue
            prefix = first.pop(engine_hash, None)
            if prefix is not None and not _take_one(self._others, prefix):
                self.log.remove(prefix)

    def _clear(self) -> None:
        for first in self._first.values():
            first.clear()
        self._more.clear()
        self._others.clear()
        self.log.clear()

    def _prefix(self, engine_hash: EngineHash) -> int:
        """Return our hash of a block that is held anywhere; 0 is unknown."""
        for first in self._first.values():
            if engine_hash in first:
                return first[engine_hash]
        return 0


def _take_one(counts: Counter[Any], key: Any) -> bool:
    """Count one less; returns False where there was none."""
    count = counts.get(key, 0)
    if count > 1:
        counts[key] = count - 1
    elif count:
        del counts[key]
    return bool(count)


def _medium(name: str | None) -> str:
    """Return the medium as the wire has it."""
    return "" if name is None or name in _ACCELERATOR else name


def _plain_blocks(event: BlockStored) -> tuple[int, str | None]:
    """Return how many blocks before the first private one, and the prompt's cache salt."""
    count, salt = len(event.block_hashes), None
    if event.extra_keys is None:
        return count, salt
    for at, keys in enumerate(event.extra_keys):
        if not keys:
            continue
        left = list(keys)
        if event.lora_name and left[0] == event.lora_name:
            del left[0]
        if at == 0 and event.parent_block_hash is None and left and isinstance(left[-1], str):
            salt = left.pop()
        if left:
            return at, salt
    return count, salt
