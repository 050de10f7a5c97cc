"""The router's contract: events in, choices out. One router serves the workers of one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What a policy may look at. `exclude` holds workers that already failed this request."""

    request_id: str
    token_ids: Sequence[int]
    lora_name: str | None = None
    session_id: str | None = None
    pinned: str | None = None
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen worker; `overlap_blocks` prompt blocks are believed to be in its KV cache."""

    worker_id: str
    overlap_blocks: int = 0
    cost: float = 0.0
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can take requests."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker takes no more requests; what is running there goes on."""

    worker_id: str


RouterEvent = WorkerJoined | WorkerLeft


class Router(Protocol):
    """A pure state machine. `now` is a monotonic time in seconds that the caller passes in.

    Every `started` is followed by exactly one `finished` with the same request id.
    """

    def observe(self, event: RouterEvent) -> None:
        """Learn a fact about the workers."""
        ...

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a worker; None when no worker may take the request."""
        ...

    def started(self, request: RouteRequest, choice: Choice, now: float) -> None:
        """The request was handed to the chosen worker."""
        ...

    def advanced(self, request_id: str, tokens: int, now: float) -> None:
        """The request has produced `tokens` more tokens."""
        ...

    def finished(self, request_id: str, now: float) -> None:
        """The request is over, however it ended."""
        ...
