"""The Engine contract over vLLM's AsyncLLM: tokens in, tokens out, text never."""

import asyncio
import gc
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from runtime.errors import EngineFailed, InvalidRequest, WorkerLost
from wire.pooling import EMBED, GENERATE, Pooling
from wire.sampling import Sampling
from wire.tokens import TokenRequest, TokenSink
from worker.engine import EngineInfo, EngineLoad
from worker.kv_log import KvLog
from worker.request_check import check_request
from worker.vllm_adapters import NO_ADAPTER, load_adapters
from worker.vllm_kv_events import follow, kv_sources
from worker.vllm_params import sampling_params, serving_error
from worker.vllm_pooling import embedding_delta, pooling_params
from worker.vllm_start import StartedVllm, VllmSettings, build_vllm
from worker.vllm_stats import LoadRecord
from worker.vllm_steps import PlainRequest, PlainSteps, VllmRequest

log = logging.getLogger(__name__)

WARM_UP_TIMEOUT_S = 300.0
SHUTDOWN_TIMEOUT_S = 8.0


class VllmEngine:
    """Engine. `build` comes first, before the event loop runs; see worker/vllm_start.py.

    Requests are tasks of a group that `start` opens and `close` leaves; others watch vLLM's own
    output task, which ends when the engine is dead, and its KV events.
    """

    info: EngineInfo

    def __init__(self, settings: VllmSettings) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._load = LoadRecord()
        self.load_changed = self._load.changed
        self.kv_logs: tuple[KvLog, ...] = ()
        self._started: StartedVllm | None = None
        self._llm: Any = None
        self._adapters: Mapping[str, Any] = {}
        self._requests: dict[str, VllmRequest] = {}
        self._steps: PlainSteps
        self._failed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []

    def build(self) -> None:
        """Load the model: blocking, in the main thread; raises InvalidConfig, EngineFailed."""
        self._started = build_vllm(self._settings, self._load.logger_class)
        self._llm = self._started.llm
        self._steps = PlainSteps(self._llm.output_processor, self._requests)

    async def start(self) -> EngineInfo:
        """Answer warm-up requests; the first with log probabilities compiles for seconds."""
        if self._started is None:
            raise EngineFailed("the engine was not built")
        await self._stack.enter_async_context(self._tasks)
        # Cached inside vLLM: from now on a request is known there before its first await ends.
        tasks = await self._llm.get_supported_tasks()
        self._adapters = await load_adapters(self._llm, self._started.adapters)
        self.info = engine_info(self._started, tasks)
        self._follow_cache(self._started)
        try:
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                await self._warm_up(Sampling(temperature=0, max_tokens=2))
                # vLLM's output task exists from the first request on.
                self._watchers.append(self._tasks.create_task(self._watch(), name="vllm watcher"))
                if self.info.task == GENERATE:
                    await self._warm_up(Sampling(temperature=0, max_tokens=2, logprobs=1))
        except TimeoutError:
            raise EngineFailed("the engine did not answer its warm-up request") from None
        return self.info

    def submit(self, request: TokenRequest, sink: TokenSink) -> None:
        """Check a request and begin it."""
        if self.failure is not None:
            raise WorkerLost(self.failure)
        request_id = request.request_id
        if request_id in self._requests:
            raise InvalidRequest(
                f"request id {request_id!r} is already running", param="request_id"
            )
        request = check_request(request, self.info)
        pooling = request.pooling
        params = sampling_params(request.sampling) if pooling is None else pooling_params(pooling)
        entry: VllmRequest
        if self._steps.fits(request):
            entry = PlainRequest(request, sink, self._requests, self._abort)
        else:
            entry = VllmRequest(request, sink, self._requests)
        self._requests[request_id] = entry
        entry.task = self._tasks.create_task(self._run(entry, params), name=f"vllm {request_id}")

    def cancel(self, request_id: str) -> None:
        """Stop a request; closing vLLM's generator aborts one that has it in the engine."""
        entry = self._requests.pop(request_id, None)
        if entry is not None and entry.task is not None:
            entry.sink = None
            entry.task.cancel()
            if isinstance(entry, PlainRequest):
                self._abort(request_id)

    def load(self) -> EngineLoad:
        """The load after the engine's last step."""
        return self._load.load()

    def loads(self) -> tuple[EngineLoad, ...]:
        """The load of each rank after its last step."""
        return self._load.loads(self.info.data_parallel_size)

    async def probe(self, timeout_s: float) -> None:
        """Make the engine answer a call: its own health check misses a dead input thread."""
        if self.failure is not None or self._llm.errored:
            raise EngineFailed(self.failure or "the engine is in error")
        try:
            async with asyncio.timeout(timeout_s):
                await self._llm.is_sleeping()
        except TimeoutError:
            raise
        except Exception as error:
            raise EngineFailed(f"the engine does not answer: {error}") from error

    async def wait_failed(self) -> str:
        """Wait until the engine is dead."""
        await self._failed.wait()
        return self.failure or ""

    async def close(self) -> None:
        """Fail what runs, end the engine's processes. Takes up to `SHUTDOWN_TIMEOUT_S`."""
        self._end("the engine was stopped")
        for watcher in self._watchers:
            watcher.cancel()
        await self._stack.aclose()
        if self._started is not None:
            await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_TIMEOUT_S)
            shutil.rmtree(self._started.rpc_folder, ignore_errors=True)
            # At the interpreter's end its finalizer would find half of vLLM gone; it is part of
            # a reference cycle.
            self._started = self._llm = None
            gc.collect()

    async def _run(self, entry: VllmRequest, params: Any) -> None:
        try:
            if isinstance(entry, PlainRequest):
                await self._llm.add_request(**self._arguments(entry.request), params=params)
            elif entry.request.pooling is not None:
                await self._embed(entry, params)
            else:
                await self._generate(entry, params)
        except Exception as error:
            failure = serving_error(error, entry.request)
            if isinstance(failure, EngineFailed):
                log.exception("request %s failed in the engine", entry.request.request_id)
            entry.fail(failure)
        finally:
            if not isinstance(entry, PlainRequest):
                entry.leave()

    def _arguments(self, request: TokenRequest) -> dict[str, Any]:
        from vllm.inputs.engine import tokens_input

        return {
            "request_id": request.request_id,
            "prompt": tokens_input(request.token_ids, cache_salt=request.cache_salt),
            "priority": request.priority,
            "data_parallel_rank": request.data_parallel_rank,
            "session_id": request.session_id,
            "lora_request": self._adapters.get(request.lora_name or NO_ADAPTER),
        }

    async def _generate(self, entry: VllmRequest, params: Any) -> None:
        arguments = self._arguments(entry.request)
        outputs = self._llm.generate(**arguments, sampling_params=params)
        async with aclosing(outputs):
            async for output in outputs:
                entry.take(output)
        if entry.open_choices:
            raise EngineFailed("the engine ended the request without its end")

    async def _embed(self, entry: VllmRequest, params: Any) -> None:
        from vllm.inputs.engine import tokens_input

        request = entry.request
        outputs = self._llm.encode(
            tokens_input(request.token_ids),
            params,
            request.request_id,
            lora_request=self._adapters.get(request.lora_name or NO_ADAPTER),
            priority=request.priority,
        )
        async with aclosing(outputs):
            async for output in outputs:
                if output.finished:
                    entry.leave()
                    if entry.sink is not None:
                        entry.sink.put(embedding_delta(output))
                    return
        raise EngineFailed("the engine ended the request without its end")

    def _abort(self, request_id: str) -> None:
        """End a plain request in vLLM: at once in its books, soon in the engine."""
        internal_ids = self._llm.output_processor.abort_requests([request_id], internal=False)
        if internal_ids:
            self._tasks.create_task(self._tell_aborted(internal_ids), name="vllm abort")

    async def _tell_aborted(self, internal_ids: list[str]) -> None:
        try:
            await self._llm.engine_core.abort_requests_async(internal_ids)
        except Exception:
            # Who watches the engine tells its death; a request that is gone needs no error.
            log.warning("the engine could not be told of an abort", exc_info=True)

    def _follow_cache(self, started: StartedVllm) -> None:
        sources = kv_sources(started.config, self._llm.get_kv_event_sources())
        if not (sources and self._settings.kv_events):
            return
        self.kv_logs = tuple(KvLog(rank) for rank in range(self.info.data_parallel_size))
        for subscriber in follow(sources, self.kv_logs, self.info.block_size, NO_ADAPTER):
            self._watchers.append(self._tasks.create_task(subscriber.run(), name="vllm KV events"))

    async def _watch(self) -> None:
        handler = self._llm.output_handler
        await asyncio.wait([handler])
        self._end("the engine died")
        self._failed.set()

    def _end(self, reason: str) -> None:
        if self.failure is not None:
            return
        self.failure = reason
        for request_id, entry in list(self._requests.items()):
            sink = entry.sink
            self.cancel(request_id)
            if sink is not None:
                sink.fail(WorkerLost(reason))

    async def _warm_up(self, sampling: Sampling) -> None:
        request = TokenRequest(
            request_id="warm-up",
            token_ids=[min(100, self.info.vocab_size - 1)] * 8,
            sampling=sampling,
            pooling=Pooling() if self.info.task == EMBED else None,
        )
        sink = _WarmUpSink()
        self.submit(request, sink)
        await sink.done


class _WarmUpSink:
    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, delta: Any) -> None:
        if delta.finish_reason is not None and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Any) -> None:
        if not self.done.done():
            self.done.set_exception(EngineFailed(f"warm-up failed: {error.message}"))


def engine_info(started: StartedVllm, tasks: Sequence[str]) -> EngineInfo:
    """Read the engine's facts from its configuration, and what vLLM says it can do.

    Raises EngineFailed for a model that can do nothing which is served here.
    """
    task = next((it for it in (GENERATE, EMBED) if it in tasks), None)
    if task is None:
        raise EngineFailed(f"the model neither generates nor embeds: vLLM says {list(tasks)}")
    config = started.config
    model, cache = config.model_config, config.cache_config
    vocab_size = model.get_vocab_size()
    max_logprobs = model.max_logprobs
    return EngineInfo(
        kind="vllm",
        vocab_size=vocab_size,
        context_length=model.max_model_len,
        block_size=cache.block_size,
        kv_blocks=cache.num_gpu_blocks or 0,
        eos_token_ids=_eos_token_ids(started),
        max_logprobs=vocab_size if max_logprobs == -1 else max_logprobs,
        data_parallel_size=config.parallel_config.data_parallel_size,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        task=task,
        adapters=tuple(it.name for it in started.adapters if it.name != NO_ADAPTER),
    )


def _eos_token_ids(started: StartedVllm) -> tuple[int, ...]:
    found: list[int] = []
    own = getattr(started.llm.tokenizer, "eos_token_id", None)
    more = started.config.model_config.try_get_generation_config().get("eos_token_id")
    for value in (own, *(more if isinstance(more, list) else [more])):
        if isinstance(value, int) and value not in found:
            found.append(value)
    return tuple(found)
