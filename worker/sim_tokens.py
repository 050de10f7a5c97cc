"""Which token the simulated engine says next: a pure function of all tokens before it and the seed.

Because nothing else counts, a worker that goes on from prompt plus answer so far says exactly what
the first one would have said.
"""

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from wire.sampling import Sampling
from wire.tokens import Position, TokenLogprob

_MASK = 2**64 - 1


def fold(token_ids: Sequence[int], state: int = 0) -> int:
    """Return the 32-bit state after `token_ids`, which may be folded in pieces."""
    return crc32(array("I", token_ids).tobytes(), state)


def fold_one(token_id: int, state: int) -> int:
    """Return the state after one more token: `fold((token_id,), state)`, faster."""
    return crc32(token_id.to_bytes(4, sys.byteorder), state)


def _mix(*parts: int) -> int:
    # The finalizer of SplitMix64 (Steele, Lea, Flood 2014): neighbouring inputs spread evenly.
    value = 0
    for part in parts:
        value = (value + part + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The ids that may be said: [first, first + count), and the end tokens.

    `mean_answer_tokens` is the mean length of answers that end by themselves; 0: none does.
    """

    first: int
    count: int
    eos_token_ids: tuple[int, ...]
    mean_answer_tokens: int = 0

    def plain(self, number: int) -> int:
        """Return the ordinary token of a random number."""
        return self.first + number % self.count


class TokenSource:
    """The tokens of one choice. `seed_offset` is the choice's index, as vLLM counts its seeds."""

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, seed_offset: int = 0) -> None:
        self._vocabulary = vocabulary
        seed = 0 if sampling.temperature == 0 else (sampling.seed or 0) + seed_offset
        self._seed = seed & _MASK
        bias = sampling.logit_bias or {}
        forced = tuple(sorted(token for token, value in bias.items() if value >= 100))
        allowed = sampling.allowed_token_ids or ()
        self._allowed = tuple(t for t in allowed if not forced or t in forced) or forced or allowed
        self._banned = frozenset(token for token, value in bias.items() if value <= -100)
        self._eos = frozenset(vocabulary.eos_token_ids)
        self._ends = frozenset(sampling.stop_token_ids) | self._eos

    def next_token(self, state: int, *, may_end: bool, ignore_eos: bool) -> int:
        """Return the token that follows `state`; no end or stop token unless `may_end`."""
        number = _mix(state, self._seed)
        mean = self._vocabulary.mean_answer_tokens
        ends = mean and may_end and self._eos and not self._allowed and not ignore_eos
        if ends and _mix(number, 1) % mean == 0:
            return self._vocabulary.eos_token_ids[0]
        refused = self._banned if may_end else self._banned | self._ends
        # Sixteen tries: only a set of refused ids as large as the vocabulary gets through.
        for attempt in range(16):
            token = self._candidate(number if attempt == 0 else _mix(number, attempt + 1))
            if token not in refused:
                break
        return token

    def _candidate(self, number: int) -> int:
        if self._allowed:
            return self._allowed[number % len(self._allowed)]
        return self._vocabulary.plain(number)

    def logprobs(self, state: int, token: int, top: int, extra: Sequence[int] = ()) -> Position:
        """Return the position's entries: `token` as the likeliest, `top - 1` others, `extra`."""
        number = _mix(state, self._seed, 2)
        share = 0.5 + (number % 1000) / 2500
        position = [TokenLogprob(token, math.log(share), 1)]
        seen = {token}
        rest = 1 - share
        candidates = [self._vocabulary.plain(_mix(number, i)) for i in range(2 * top)]
        for other in [*candidates, *extra]:
            wanted = len(position) < top or other in extra
            if other in seen or not wanted:
                continue
            rest /= 2
            seen.add(other)
            position.append(TokenLogprob(other, math.log(rest), len(position) + 1))
        return position
