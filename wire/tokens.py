"""The token side: what a front door asks of a worker, and what comes back."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import msgspec

from runtime.errors import ServingError
from wire.pooling import Pooling
from wire.sampling import Sampling


class FinishReason(IntEnum):
    """Why a choice ended; the number is the code in a step frame, 0 while it goes on."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    REPETITION = 5

    @property
    def label(self) -> str:
        """The lower-case name clients see."""
        return self.name.lower()


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation, in tokens. `token_ids` is the whole prompt, each id in [0, vocab_size).

    `traceparent` (W3C Trace Context) is the span of the caller's that the work hangs below.
    `pinned_worker` is for a router between: only this worker may take it. With `pooling` the
    answer is one delta, with an `embedding` and no tokens.
    """

    request_id: str
    token_ids: Sequence[int]
    sampling: Sampling
    lora_name: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    session_id: str | None = None
    data_parallel_rank: int | None = None
    traceparent: str | None = None
    pinned_worker: str | None = None
    pooling: Pooling | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability (natural log) of one token; rank 1 is the most likely."""

    token_id: int
    logprob: float
    rank: int | None = None


Position = list[TokenLogprob]
"""One position's log probabilities: the sampled token first, then the most likely ones."""


class TokenDelta(msgspec.Struct, kw_only=True):
    """New tokens of one choice. The last of a choice has `finish_reason`; nothing follows it.

    `stop_reason` is the id of the stop token that ended it, if one of `stop_token_ids` did;
    `cached_tokens` (prompt tokens found in the KV cache) and `queued_s` (seconds that the request
    waited in the engine's queue, if known) stand on a request's first delta. `embedding` is
    float32 [dimensions], little-endian.
    """

    index: int = 0
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[Position] | None = None
    prompt_logprobs: list[Position] | None = None
    cached_tokens: int | None = None
    queued_s: float | None = None
    embedding: bytes | None = None


class TokenSink(Protocol):
    """Where an engine puts a request's deltas; called on the event loop, must not block or raise.

    Exactly one end comes: either every choice gets a delta with a finish_reason, or `fail`.
    """

    def put(self, delta: TokenDelta) -> None:
        """Take the next delta."""
        ...

    def fail(self, error: ServingError) -> None:
        """Take the error that ends the request."""
        ...
