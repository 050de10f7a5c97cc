"""Log probabilities on their way out: JSON knows no infinities, so they are clamped."""

import math
from collections.abc import Iterable

from wire.tokens import Position, TokenLogprob

LOWEST_LOGPROB = -9999.0
"""What an impossible token's -inf (or a nan) travels as; OpenAI's API uses the same number."""


def finite(logprob: float) -> float:
    """`logprob`, or LOWEST_LOGPROB when JSON could not carry it."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def finite_positions(positions: Iterable[Position]) -> list[Position]:
    """A copy of `positions` with every log probability finite."""
    return [
        [
            entry
            if math.isfinite(entry.logprob)
            else TokenLogprob(entry.token_id, LOWEST_LOGPROB, entry.rank)
            for entry in position
        ]
        for position in positions
    ]
