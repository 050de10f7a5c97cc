"""The simulated engine's cache events: those of one step, told as vLLM tells them."""

import time
from collections.abc import Sequence

from worker.kv_blocks import AllBlocksCleared, BlockRemoved, BlockStored, EngineEvent, KvBlocks
from worker.kv_log import KvLog
from worker.sim_cache import Root


class SimKvEvents:
    """Collects what the cache does (its listener) until `publish` brings it to the log."""

    def __init__(self, log: KvLog, block_size: int) -> None:
        self._blocks = KvBlocks(log, block_size)
        self._block_size = block_size
        self._events: list[EngineEvent] = []

    def stored(self, block: int, parent: int | None, token_ids: Sequence[int], root: Root) -> None:
        """Take a block that is full; those of one prompt in a row become one event."""
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockStored) and last.block_hashes[-1] == parent:
            last.block_hashes.append(block)
            last.token_ids.extend(token_ids)
            return
        keys = [it for it in root if it] if parent is None else []
        self._events.append(
            BlockStored(
                block_hashes=[block],
                parent_block_hash=parent,
                token_ids=list(token_ids),
                block_size=self._block_size,
                lora_name=root.lora_name,
                extra_keys=[keys] if keys else None,
            )
        )

    def removed(self, block: int) -> None:
        """Take a block that was evicted."""
        self._events.append(BlockRemoved(block_hashes=[block]))

    def cleared(self) -> None:
        """Take that no block is left; what came before does not matter any more."""
        self._events = [AllBlocksCleared()]

    def publish(self) -> None:
        """Bring what has come together to the log, as one batch."""
        if self._events:
            events, self._events = self._events, []
            self._blocks.apply(events, time.time())  # noqa: TID251 - a date for other machines
