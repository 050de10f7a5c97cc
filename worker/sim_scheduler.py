"""Continuous batching as vLLM does it, without a clock: who computes how many tokens next step."""

from collections import deque
from dataclasses import dataclass, field

from worker.sim_cache import NO_ROOT, PrefixCache, Root, block_hash, prefix_hashes
from worker.sim_timing import Chunk


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One choice on its way. `token_ids` is prompt plus answer.

    `computed` of its tokens are in the cache. `hashes` are the stored blocks it holds, `private`
    counts its blocks that are not full yet.
    """

    token_ids: list[int]
    root: Root = NO_ROOT
    reuse: bool = True
    computed: int = 0
    answered: int = 0
    cached_tokens: int = 0
    hashes: list[int] = field(default_factory=list)
    private: int = 0

    @property
    def todo(self) -> int:
        """Tokens still to compute before the next one can be said."""
        return len(self.token_ids) - self.computed


class Scheduler:
    """First come, first served; the youngest gives way when blocks run out.

    Running sequences go first, so that answers flow while prompts are computed in chunks
    (vLLM's chunked prefill): `max_tokens_per_step` tokens in all, `max_sequences` at once.
    `admitted` are the sequences that the last plan took from the queue. Tokens looked up in the
    cache, and found there, are counted.
    """

    def __init__(
        self, cache: PrefixCache, *, block_size: int, max_sequences: int, max_tokens_per_step: int
    ) -> None:
        self._cache = cache
        self._block_size = block_size
        self._max_sequences = max_sequences
        self._max_tokens_per_step = max_tokens_per_step
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.admitted: list[Sequence] = []
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._preempted: set[Sequence] = set()

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def plan(self) -> list[tuple[Sequence, Chunk]]:
        """Choose the next step's work and reserve its blocks."""
        budget = self._max_tokens_per_step
        chosen: list[tuple[Sequence, Chunk]] = []
        self._preempted.clear()
        self.admitted.clear()
        for sequence in list(self.running):
            if budget and sequence not in self._preempted and self._grow(sequence, budget):
                chosen.append((sequence, self._chunk(sequence, budget)))
                budget -= chosen[-1][1].new_tokens
        if self._preempted:
            chosen = [entry for entry in chosen if entry[0] not in self._preempted]
        # As in vLLM: who gave way does not come back in the same step.
        while budget and self._may_admit():
            sequence = self.waiting[0]
            if not self._admit(sequence, budget):
                break
            self.running.append(self.waiting.popleft())
            self.admitted.append(sequence)
            chosen.append((sequence, self._chunk(sequence, budget)))
            budget -= chosen[-1][1].new_tokens
        return chosen

    def _may_admit(self) -> bool:
        room = len(self.running) < self._max_sequences
        return bool(self.waiting) and room and not self._preempted

    def advance(self, sequence: Sequence, chunk: Chunk) -> bool:
        """Book a computed chunk; returns whether the sequence's next token is due."""
        sequence.computed += chunk.new_tokens
        size = self._block_size
        while (len(sequence.hashes) + 1) * size <= sequence.computed:
            start = len(sequence.hashes) * size
            parent = sequence.hashes[-1] if sequence.hashes else None
            tokens = sequence.token_ids[start : start + size]
            block = block_hash(parent, tokens, sequence.root)
            self._cache.store(block, parent, tokens, sequence.root)
            sequence.hashes.append(block)
            sequence.private -= 1
        return sequence.todo == 0

    @staticmethod
    def _chunk(sequence: Sequence, budget: int) -> Chunk:
        todo = sequence.todo
        decode = todo == 1 and sequence.answered > 0
        return Chunk(min(todo, budget), sequence.computed, decode)

    def _missing_blocks(self, sequence: Sequence, start: int, budget: int, held: int) -> int:
        end = min(start + budget, len(sequence.token_ids))
        return max(0, -(-end // self._block_size) - held)

    def _grow(self, sequence: Sequence, budget: int) -> bool:
        held = len(sequence.hashes) + sequence.private
        missing = self._missing_blocks(sequence, sequence.computed, budget, held)
        if not missing:
            return True
        while not self._cache.take([], missing):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.private += missing
        return True

    def _admit(self, sequence: Sequence, budget: int) -> bool:
        hashes: list[int] = []
        if sequence.reuse:
            # The last token is always computed: its logits are the next token.
            hashes = prefix_hashes(sequence.token_ids[:-1], self._block_size, sequence.root)
            hashes = hashes[: self._cache.match(hashes)]
        start = len(hashes) * self._block_size
        missing = self._missing_blocks(sequence, start, budget, len(hashes))
        if not self._cache.take(hashes, missing):
            return False
        sequence.hashes = hashes
        sequence.private = missing
        sequence.computed = start
        if not sequence.answered:
            sequence.cached_tokens = sequence.computed
            if sequence.reuse:
                self.queried_tokens += len(sequence.token_ids)
                self.hit_tokens += sequence.computed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self._preempted.add(sequence)
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._cache.give_back(sequence.hashes, sequence.private)
        sequence.hashes = []
        sequence.private = 0
        sequence.computed = 0
