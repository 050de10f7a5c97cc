"""What a worker asks of an engine. Two exist: vLLM and the simulator; one contract suite holds both."""

from typing import Protocol

import msgspec

from wire.tokens import TokenRequest, TokenSink


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed facts of a started engine: sizes in tokens, `kv_blocks` of `block_size` tokens."""

    kind: str
    vocab_size: int
    context_length: int
    block_size: int
    kv_blocks: int
    eos_token_ids: tuple[int, ...]
    max_logprobs: int = 20
    data_parallel_size: int = 1


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's last known load; `kv_usage` in [0, 1] counts blocks of live requests."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Engine(Protocol):
    """An engine. All methods are called on one event loop.

    * `start` is awaited once, first, and returns when a warm-up request has been answered.
    * `submit` checks the request and returns at once; what is wrong with it raises InvalidRequest
      and nothing was started. After it the sink gets deltas and exactly one end, unless cancelled.
      Ids may repeat across time but not among running requests: that raises InvalidRequest.
    * `cancel` frees the request's place and its blocks; its sink gets nothing after `cancel` has
      returned. Unknown ids are ignored.
    * `probe` proves that the engine still takes and answers calls: it raises EngineFailed, or
      TimeoutError after `timeout_s`. It is safe at any time.
    * When the engine dies, every running sink gets `fail` with WorkerLost, `wait_failed` returns
      the reason, and `submit` raises WorkerLost from then on. A dead engine never comes back.
    * `close` ends everything; running sinks get `fail`. No process of the engine outlives it.
    """

    info: EngineInfo

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

    async def probe(self, timeout_s: float) -> None:
        """Prove liveness by an active call."""
        ...

    async def wait_failed(self) -> str:
        """Wait until the engine is dead; returns why."""
        ...

    async def close(self) -> None:
        """Stop the engine. Idempotent."""
        ...
