"""How long a step of the simulated engine takes: one formula, no state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runtime.errors import InvalidConfig


class Chunk(NamedTuple):
    """One sequence's share of a step: `new_tokens` computed after `context_tokens` held before."""

    new_tokens: int
    context_tokens: int
    decode: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SimTiming:
    """Coefficients of a step's duration; the defaults are of the order of an 8B model on one H100.

    A step takes

        step_ms
        + prefill_us_per_token * prompt tokens computed in it
        + prefill_ns_per_token_pair * sum over prompt chunks of new * (context + new / 2)
        + decode_us_per_sequence * sequences that get one more token
        + decode_ns_per_context_token * tokens those sequences hold

    divided by `speedup`. `speedup` 0 means no delay at all: a step per turn of the event loop.
    """

    speedup: float = 1.0
    step_ms: float = 6.0
    prefill_us_per_token: float = 25.0
    prefill_ns_per_token_pair: float = 1.0
    decode_us_per_sequence: float = 15.0
    decode_ns_per_context_token: float = 20.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) < 1e9:
                raise InvalidConfig(f"{name} must be at least 0", param=name)

    def step_s(self, chunks: Sequence[Chunk]) -> float:
        """Return the duration of one step in seconds."""
        if self.speedup == 0:
            return 0.0
        us = self.step_ms * 1000
        for chunk in chunks:
            new, held = chunk.new_tokens, chunk.context_tokens
            if chunk.decode:
                us += self.decode_us_per_sequence
                us += self.decode_ns_per_context_token * held / 1000
            else:
                us += self.prefill_us_per_token * new
                us += self.prefill_ns_per_token_pair * new * (held + new / 2) / 1000
        return us / 1e6 / self.speedup
