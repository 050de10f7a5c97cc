"""The router's contract: facts in, choices out. One router serves the workers of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from wire.block_hash import Hashes


class Place(NamedTuple):
    """Where a request can go: one data-parallel rank of a worker."""

    worker_id: str
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What a policy may look at. `exclude` holds workers that already failed this request.

    `token_ids` is best an array("i"): policies that hash it read it in place. Requests of one
    `session_id` go to one place; `session_ends` says that this is the last of them.
    """

    request_id: str
    token_ids: Sequence[int]
    lora_name: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    session_ends: bool = False
    pinned: str | None = None
    pinned_rank: int | None = None
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen place. Of `prompt_blocks`, `overlap_blocks` are believed to be in its KV cache.

    Only full blocks are counted. `cost` is in blocks (router/cost.py).

    `hashes` are the prompt's, for the router's own use in `started`.
    """

    worker_id: str
    rank: int = 0
    overlap_blocks: int = 0
    prompt_blocks: int = 0
    cost: float = 0.0
    hashes: Hashes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One place as it is judged for a request. `busy`: above a threshold, not to be chosen."""

    place: Place
    overlap_blocks: int = 0
    cost: float = 0.0
    active_blocks: int = 0
    prefill_tokens: int = 0
    busy: bool = False


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can take requests; nothing is known yet of its cache and load.

    `kv_blocks` is each rank's capacity, 0 when unknown; `block_size` in tokens, 0 when unknown or
    when prompts share no blocks there. A worker that joins again begins anew.
    """

    worker_id: str
    ranks: int = 1
    kv_blocks: int = 0
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker takes no more requests; its blocks are forgotten, what runs there goes on."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerStalled:
    """A worker makes no progress, or does so again: it is chosen only when all are stalled."""

    worker_id: str
    stalled: bool


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A place holds these blocks from now on. Storing twice is storing once.

    Like all that is said of a place, it counts from WorkerJoined to WorkerLeft only.
    """

    place: Place
    hashes: Hashes


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A place holds these blocks no more; unknown ones are ignored."""

    place: Place
    hashes: Hashes


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """A place holds no block any more."""

    place: Place


@dataclass(frozen=True, slots=True)
class LoadReported:
    """The engine's own word at `now`. `kv_usage` in [0, 1] counts blocks of live requests."""

    place: Place
    running: int
    waiting: int
    kv_usage: float
    now: float


class Active(NamedTuple):
    """What a router has running on one place."""

    blocks: int
    prefill_tokens: int
    requests: int


@dataclass(frozen=True, slots=True)
class PeerLoad:
    """Everything another router has running now on the same workers; empty when it is gone."""

    peer_id: str
    active: Mapping[Place, Active]


RouterEvent = (
    WorkerJoined
    | WorkerLeft
    | WorkerStalled
    | BlocksStored
    | BlocksRemoved
    | BlocksCleared
    | LoadReported
    | PeerLoad
)


@dataclass(frozen=True, slots=True)
class BusyThresholds:
    """A place is busy above any of these, None is no threshold.

    `active_decode_blocks` is a part of its KV capacity in [0, 1]; `active_prefill_tokens` counts
    prompt tokens not yet computed.
    """

    active_decode_blocks: float | None = None
    active_prefill_tokens: int | None = None


class RouterStats(NamedTuple):
    """`blocks`: index entries by place; `evicted`: dropped for the memory bound, ever."""

    blocks: Mapping[Place, int]
    evicted: int


class Router(Protocol):
    """A pure state machine. `now` is a monotonic time in seconds that the caller passes in.

    Every `started` is followed by exactly one `finished` with the same request id. Policies that
    have no use for a fact ignore it.
    """

    thresholds: BusyThresholds

    def observe(self, event: RouterEvent) -> None:
        """Learn a fact about the workers."""
        ...

    def choose(self, request: RouteRequest, now: float) -> Choice | None:
        """Pick a place; None when no worker may take the request.

        Raises Overloaded when there are workers and all that may take it are busy.
        """
        ...

    def explain(self, request: RouteRequest, now: float) -> list[Candidate]:
        """Judge every place that may take the request, best first; changes nothing."""
        ...

    def started(self, request: RouteRequest, choice: Choice, now: float) -> None:
        """The request was handed to the chosen worker."""
        ...

    def advanced(self, request_id: str, tokens: int, now: float) -> None:
        """The request has produced `tokens` more tokens; the first call ends its prefill."""
        ...

    def finished(self, request_id: str, now: float) -> None:
        """The request is over, however it ended."""
        ...

    def work(self, now: float) -> bool:
        """Do some of what can wait, a millisecond's; returns whether there is more."""
        ...

    def active(self) -> dict[Place, Active]:
        """What this router has running, for its peers."""
        ...

    def stats(self) -> RouterStats:
        """The size of the index."""
        ...
