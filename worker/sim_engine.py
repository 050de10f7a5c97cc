"""The simulated engine: the Engine contract without a model.

Real scheduling, batching, caching and (scaled) time; tokens by a hash. For capacity planning,
chaos tests and benchmarks. Imports neither vLLM nor torch.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import (
    EngineFailed,
    InvalidConfig,
    InvalidRequest,
    ServingError,
    Unsupported,
    WorkerLost,
)
from wire.pooling import GENERATE
from wire.sampling import Sampling
from wire.tokens import FinishReason, Position, TokenDelta, TokenRequest, TokenSink
from wire.vectors import FLOAT32
from worker.engine import EngineInfo, EngineLoad
from worker.kv_log import KvLog
from worker.listeners import Listeners
from worker.request_check import check_request
from worker.sim_cache import PrefixCache, Root
from worker.sim_kv_events import SimKvEvents
from worker.sim_scheduler import Scheduler, Sequence
from worker.sim_timing import Chunk, SimTiming
from worker.sim_tokens import TokenSource, Vocabulary, fold, fold_one

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """What is simulated. Sizes in tokens; the cache has `kv_blocks` of `block_size` tokens.

    Answers are made of the ids [first_token_id, first_token_id + plain_tokens); 0 plain tokens
    means up to the vocabulary's end. An answer ends by itself after `mean_answer_tokens` on
    average, at a place that depends on the tokens only; 0: it goes on to `max_tokens`.
    Requests may ask for `adapters`, whose blocks are their own and whose answers are the same.
    With the task EMBED they ask for vectors of so many `dimensions`: a hash of the tokens.
    `die_after_steps` and `hang_after_steps` make the engine fail in that step, 0: never.
    """

    vocab_size: int = 49152
    context_length: int = 8192
    first_token_id: int = 1000
    plain_tokens: int = 0
    eos_token_ids: tuple[int, ...] = (2,)
    mean_answer_tokens: int = 0
    block_size: int = 32
    kv_blocks: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_logprobs: int = 20
    die_after_steps: int = 0
    hang_after_steps: int = 0
    adapters: tuple[str, ...] = ()
    task: str = GENERATE
    dimensions: int = 64
    timing: SimTiming = field(default_factory=SimTiming)

    def __post_init__(self) -> None:
        least = {"vocab_size": 2, "context_length": 2, "block_size": 1, "kv_blocks": 1}
        least |= {"max_num_seqs": 1, "max_num_batched_tokens": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidConfig(f"{name} must be at least {value}", param=name)
        if not 0 <= self.first_token_id < self.vocab_size:
            raise InvalidConfig("first_token_id is outside the vocabulary", param="first_token_id")
        if self.kv_blocks * self.block_size < self.context_length:
            raise InvalidConfig("kv_blocks must hold one full context", param="kv_blocks")

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids that answers are made of."""
        last = self.vocab_size - self.first_token_id
        return Vocabulary(
            first=self.first_token_id,
            count=min(self.plain_tokens or last, last),
            eos_token_ids=self.eos_token_ids,
            mean_answer_tokens=self.mean_answer_tokens,
        )


class _Choice:
    """One sequence and what decides its tokens and its end."""

    def __init__(self, running: "_Running", index: int, vocabulary: Vocabulary) -> None:
        request = running.request
        self.running = running
        self.index = index
        self.source = TokenSource(vocabulary, request.sampling, index)
        self.state = running.prompt_state
        self.sequence = Sequence(
            token_ids=list(request.token_ids),
            root=Root(request.lora_name, request.cache_salt),
            reuse=request.sampling.prompt_logprobs is None,
        )

    def say(self, eos_token_ids: tuple[int, ...]) -> TokenDelta:
        """Say the next token, or the embedding."""
        if self.running.request.pooling is not None:
            return TokenDelta(finish_reason=FinishReason.STOP, embedding=self._embedding())
        sampling = self.running.request.sampling
        answered = self.sequence.answered
        token = self.source.next_token(
            self.state,
            may_end=answered >= sampling.min_tokens,
            ignore_eos=sampling.ignore_eos,
        )
        delta = TokenDelta(index=self.index, token_ids=[token])
        top, extra = sampling.logprobs, sampling.logprob_token_ids
        if top is not None or extra:
            delta.logprobs = [self.source.logprobs(self.state, token, top or 0, extra or ())]
        self.state = fold_one(token, self.state)
        self.sequence.token_ids.append(token)
        self.sequence.answered = answered + 1
        delta.finish_reason, delta.stop_reason = self._end(token, sampling, eos_token_ids)
        return delta

    def _embedding(self) -> bytes:
        request = self.running.request
        wanted = request.pooling.dimensions if request.pooling is not None else None
        values = np.random.default_rng(self.state).normal(size=wanted or self.running.dimensions)
        return (values / np.linalg.norm(values)).astype(FLOAT32).tobytes()

    def _end(
        self, token: int, sampling: Sampling, eos_token_ids: tuple[int, ...]
    ) -> tuple[FinishReason | None, int | None]:
        answered = self.sequence.answered
        if answered > sampling.min_tokens:
            if token in eos_token_ids and not sampling.ignore_eos:
                return FinishReason.STOP, None
            if token in sampling.stop_token_ids:
                return FinishReason.STOP, token
        if answered >= (sampling.max_tokens or 0):
            return FinishReason.LENGTH, None
        return None, None


class _Running:
    """One request from submit to its end."""

    def __init__(self, request: TokenRequest, sink: TokenSink, config: SimConfig) -> None:
        vocabulary = config.vocabulary
        self.request = request
        self.dimensions = config.dimensions
        self.sink = sink
        self.prompt_state = fold(request.token_ids)
        self.submitted_s = time.monotonic()
        self.queued_s: float | None = None
        self.first = True
        self.choices = [_Choice(self, i, vocabulary) for i in range(request.sampling.n)]

    def prompt_logprobs(self) -> list[Position] | None:
        """The prompt's positions; nothing is known about the first one."""
        top = self.request.sampling.prompt_logprobs
        if top is None:
            return None
        source, state = self.choices[0].source, 0
        positions: list[Position] = []
        for token in self.request.token_ids:
            positions.append(source.logprobs(state, token, top) if positions else [])
            state = fold_one(token, state)
        return positions


class SimEngine:
    """Engine. It owns no task: one timer is the step on its way, `close` cancels it."""

    def __init__(self, config: SimConfig, *, kv_events: bool = True) -> None:
        self.config = config
        self.failure: str | None = None
        self.load_changed = Listeners()
        self.info = EngineInfo(
            kind="sim",
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            block_size=config.block_size,
            kv_blocks=config.kv_blocks,
            eos_token_ids=config.eos_token_ids,
            max_logprobs=config.max_logprobs,
            max_num_seqs=config.max_num_seqs,
            adapters=config.adapters,
            task=config.task,
        )
        kv_log = KvLog()
        self.kv_logs: tuple[KvLog, ...] = (kv_log,) if kv_events else ()
        self._kv_events = SimKvEvents(kv_log, config.block_size) if kv_events else None
        self._cache = PrefixCache(
            config.kv_blocks,
            on_stored=self._kv_events.stored if self._kv_events else None,
            on_removed=self._kv_events.removed if self._kv_events else None,
        )
        self._scheduler = Scheduler(
            self._cache,
            block_size=config.block_size,
            max_sequences=config.max_num_seqs,
            max_tokens_per_step=config.max_num_batched_tokens,
        )
        self._requests: dict[str, _Running] = {}
        self._choices: dict[Sequence, _Choice] = {}
        self._failed = asyncio.Event()
        self._hanging = False
        self._steps_begun = 0
        self._steps_ended = 0
        self._stepped_s: float | None = None
        self._timer: asyncio.Handle | None = None

    async def start(self) -> EngineInfo:
        """Return the facts; there is nothing to load or to warm up."""
        return self.info

    def submit(self, request: TokenRequest, sink: TokenSink) -> None:
        """Queue one request."""
        if self.failure is not None:
            raise WorkerLost(self.failure)
        if request.request_id in self._requests:
            raise InvalidRequest(
                f"request id {request.request_id!r} is already running", param="request_id"
            )
        request = check_request(request, self.info)
        for name in ("structured_outputs", "repetition_detection"):
            if getattr(request.sampling, name) is not None:
                raise Unsupported(f"{name}: the simulated engine has none", param=name)
        running = _Running(request, sink, self.config)
        self._requests[request.request_id] = running
        for choice in running.choices:
            self._choices[choice.sequence] = choice
            self._scheduler.add(choice.sequence)
        self._begin_step()

    def cancel(self, request_id: str) -> None:
        """Forget one request at once."""
        running = self._requests.pop(request_id, None)
        for choice in running.choices if running else ():
            self._drop(choice)
        if running:
            self._note_change()

    def load(self) -> EngineLoad:
        """The load at this moment."""
        return EngineLoad(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_usage=self._cache.live_blocks / self._cache.capacity,
            steps=self._steps_ended,
            stepped_s=self._stepped_s,
            cache_queried_tokens=self._scheduler.queried_tokens,
            cache_hit_tokens=self._scheduler.hit_tokens,
        )

    def loads(self) -> tuple[EngineLoad, ...]:
        """The load of the only rank."""
        return (self.load(),)

    async def probe(self, timeout_s: float) -> None:
        """Answer, unless dead or hanging."""
        # A real engine answers between two steps.
        await asyncio.sleep(0)
        if self.failure is not None:
            raise EngineFailed(self.failure)
        if self._hanging:
            async with asyncio.timeout(timeout_s):
                await self._failed.wait()
            raise EngineFailed(self.failure or "the engine died")

    async def wait_failed(self) -> str:
        """Wait for `die`."""
        await self._failed.wait()
        return self.failure or ""

    async def close(self) -> None:
        """Fail what runs and stop."""
        self._end("the engine was stopped")

    def die(self, reason: str = "the simulated engine was told to die") -> None:
        """Die as an engine does whose process is gone."""
        self._end(reason)
        self._failed.set()

    def hang(self) -> None:
        """Take requests and answer nothing from now on, and no probe either."""
        self._hanging = True
        self._stop_timer()

    def resume(self) -> None:
        """End a `hang`: what was taken meanwhile is answered."""
        self._hanging = False
        self._begin_step()

    def clear_cache(self) -> None:
        """Forget all stored blocks that no request holds."""
        self._cache.clear()
        if self._kv_events and not self._cache.stored_blocks:
            self._kv_events.cleared()
        self._note_change()

    def _end(self, reason: str) -> None:
        if self.failure is not None:
            return
        self.failure = reason
        self._stop_timer()
        for request_id, running in list(self._requests.items()):
            self.cancel(request_id)
            self._tell(running, WorkerLost(reason))

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    def _begin_step(self) -> None:
        if self._timer or self._hanging or self.failure is not None or not self._requests:
            return
        loop = asyncio.get_running_loop()
        # Planned in the step's first turn, so that what is submitted together runs together.
        self._timer = loop.call_soon(self._run_step)

    def _run_step(self) -> None:
        self._timer = None
        self._steps_begun += 1
        if self._steps_begun == self.config.die_after_steps:
            return self.die(f"the simulated engine died in step {self._steps_begun}, as configured")
        if self._steps_begun == self.config.hang_after_steps:
            return self.hang()
        work = self._scheduler.plan()
        self._note_admitted()
        duration_s = self.config.timing.step_s([chunk for _, chunk in work])
        if duration_s == 0:
            return self._finish_step(work)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(duration_s, self._finish_step, work)
        return None

    def _note_admitted(self) -> None:
        now_s = time.monotonic()
        for sequence in self._scheduler.admitted:
            running = self._choices[sequence].running
            if running.queued_s is None:
                running.queued_s = now_s - running.submitted_s

    def _finish_step(self, work: list[tuple[Sequence, Chunk]]) -> None:
        self._timer = None
        self._steps_ended += 1
        self._stepped_s = time.monotonic()
        for sequence, chunk in work:
            # A sink may cancel any request, also one of this step.
            choice = self._choices.get(sequence)
            if choice and self._scheduler.advance(sequence, chunk):
                self._say(choice)
        self._note_change()
        self._begin_step()

    def _note_change(self) -> None:
        if self._kv_events:
            self._kv_events.publish()
        self.load_changed.tell()

    def _say(self, choice: _Choice) -> None:
        delta = choice.say(self.info.eos_token_ids)
        running = choice.running
        if running.first:
            running.first = False
            delta.cached_tokens = choice.sequence.cached_tokens
            delta.queued_s = running.queued_s
            delta.prompt_logprobs = running.prompt_logprobs()
        if delta.finish_reason is not None:
            self._drop(choice)
            if not any(other.sequence in self._choices for other in running.choices):
                del self._requests[running.request.request_id]
        self._tell(running, delta)

    def _drop(self, choice: _Choice) -> None:
        if self._choices.pop(choice.sequence, None):
            self._scheduler.remove(choice.sequence)

    def _tell(self, running: _Running, what: TokenDelta | ServingError) -> None:
        # One broken sink must not stop the step for the others.
        try:
            if isinstance(what, TokenDelta):
                running.sink.put(what)
            else:
                running.sink.fail(what)
        except Exception:
            log.exception("the sink of request %s raised", running.request.request_id)
            self.cancel(running.request.request_id)
