"""What a worker asks of an engine: vLLM and the simulator, held by one contract suite."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from wire.pooling import GENERATE
from wire.tokens import TokenRequest, TokenSink
from worker.kv_log import KvLog
from worker.listeners import Listeners


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed facts of a started engine: sizes in tokens, `kv_blocks` of `block_size` tokens.

    `max_num_seqs` sequences run at once in each data-parallel rank; 0 is unknown. `adapters` are
    the names of the LoRA adapters that requests may ask for; `task` is GENERATE or EMBED.
    """

    kind: str
    vocab_size: int
    context_length: int
    block_size: int
    kv_blocks: int
    eos_token_ids: tuple[int, ...]
    max_logprobs: int = 20
    data_parallel_size: int = 1
    max_num_seqs: int = 0
    adapters: tuple[str, ...] = ()
    task: str = GENERATE


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's last known load, and what it has counted since its start.

    `kv_usage` in [0, 1] counts blocks of live requests. `stepped_s` (`time.monotonic`) is when a
    step last ended, with several ranks that of the busy rank which is furthest behind; None before
    the first. Of `cache_queried_tokens`, prompt tokens looked up in the prefix cache,
    `cache_hit_tokens` were there.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    steps: int = 0
    stepped_s: float | None = None
    cache_queried_tokens: int = 0
    cache_hit_tokens: int = 0


class Engine(Protocol):
    """An engine. All methods are called on one event loop.

    * `start` is awaited once, first, and returns when a warm-up request has been answered; `info`
      is right from then on.
    * `submit` checks the request and returns at once; what is wrong with it raises InvalidRequest
      (Unsupported for what this engine cannot do) and nothing was started. After it the sink gets
      deltas and exactly one end, unless cancelled; none of it before `submit` has returned. What
      only the engine itself can judge, such as a grammar, may come as `fail` with InvalidRequest.
      Ids may repeat across time but not among running requests: that raises InvalidRequest.
    * An engine for embeddings answers with one delta, which has one and ends with STOP.
    * An answer that meets the end of the context ends with LENGTH, whatever `max_tokens` says.
    * An end token that ended a choice is the last of its `token_ids`.
    * A request's first delta says `cached_tokens` and `queued_s`; no other does.
    * `load` counts a step when it has ended, a moment after its deltas at the latest. While any
      request runs steps follow each other, also through a long prompt: an engine that makes none
      hangs. `loads` is the same by data-parallel rank, 0 first. `load_changed` tells its listeners
      after each step and when the load has changed otherwise.
    * `kv_logs` say what the prefix cache holds: one log by data-parallel rank, 0 first, or none
      at all where the engine does not tell. They are there once `start` has returned. A full block
      is stored a moment after the step that computed it, one batch a step; what had to be given
      up for it is removed.
    * `cancel` frees the request's place and its blocks, at the latest with the engine's next step;
      its sink gets nothing after `cancel` has returned. Unknown ids are ignored.
    * `probe` proves that the engine still takes and answers calls: it raises EngineFailed, or
      TimeoutError after `timeout_s`. It is safe at any time.
    * When the engine dies, every running sink gets `fail` with WorkerLost, `failure` holds the
      reason, `wait_failed` returns it, and `submit` raises WorkerLost from then on. A dead engine
      never comes back.
    * `close` ends everything; running sinks get `fail` with WorkerLost. No process of the engine
      outlives it.
    """

    kv_logs: tuple[KvLog, ...]
    load_changed: Listeners

    @property
    def info(self) -> EngineInfo:
        """The engine's facts."""
        ...

    @property
    def failure(self) -> str | None:
        """Why it is dead; None while it lives."""
        ...

    async def start(self) -> EngineInfo:
        """Load the model and prove it works; raises EngineFailed when that fails."""
        ...

    def submit(self, request: TokenRequest, sink: TokenSink) -> None:
        """Begin one request."""
        ...

    def cancel(self, request_id: str) -> None:
        """End one request early."""
        ...

    def load(self) -> EngineLoad:
        """The last known load."""
        ...

    def loads(self) -> Sequence[EngineLoad]:
        """The last known load of each rank."""
        ...

    async def probe(self, timeout_s: float) -> None:
        """Prove liveness by an active call."""
        ...

    async def wait_failed(self) -> str:
        """Wait until the engine is dead; returns why."""
        ...

    async def close(self) -> None:
        """Stop the engine. Idempotent."""
        ...
