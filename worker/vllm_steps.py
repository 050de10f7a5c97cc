"""vLLM's outputs of one step, handed in one batch to the requests that need only tokens."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from runtime.errors import EngineFailed, ServingError
from wire.tokens import TokenDelta, TokenRequest, TokenSink
from worker.vllm_params import deltas, unexpected_end

log = logging.getLogger(__name__)


class VllmRequest:
    """A running request. `sink` is None once nothing may reach it any more.

    It stands in `running` under its id until its end; the id is free before the end is told.
    """

    def __init__(
        self, request: TokenRequest, sink: TokenSink, running: "dict[str, VllmRequest]"
    ) -> None:
        self.request = request
        self.sink: TokenSink | None = sink
        self.task: asyncio.Task[None] | None = None
        self.open_choices = request.sampling.n
        self._first = True
        self._running = running

    def take(self, output: Any) -> None:
        """Take a vllm RequestOutput; raises ServingError for an end that is none."""
        found = deltas(output, first=self._first)
        self._first = False
        failure = unexpected_end(found, self.request.sampling)
        if failure is not None:
            raise failure
        self.open_choices -= sum(delta.finish_reason is not None for delta in found)
        if self.open_choices == 0:
            self.leave()
        for delta in found:
            if self.sink is not None:
                self.sink.put(delta)

    def fail(self, error: ServingError) -> None:
        """End it with an error, unless it has ended."""
        sink, self.sink = self.sink, None
        if sink is not None:
            self.leave()
            sink.fail(error)

    def leave(self) -> None:
        """Free its id; who runs under the same id by now stays."""
        if self._running.get(self.request.request_id) is self:
            del self._running[self.request.request_id]


class PlainRequest(VllmRequest):
    """A request whose outputs come from `PlainSteps`, in the place of vLLM's queue for it.

    `put` and `put_tokens` are called in vLLM's output task, where an exception ends the engine.
    """

    def __init__(
        self,
        request: TokenRequest,
        sink: TokenSink,
        running: dict[str, VllmRequest],
        abort: Callable[[str], None],
    ) -> None:
        super().__init__(request, sink, running)
        self._abort = abort

    def put(self, output: Any) -> None:
        """Take its first or last output, or the exception that vLLM tells all requests."""
        # The death of the engine is told to all at once by who watches it.
        if self.sink is None or isinstance(output, Exception):
            return
        try:
            self.take(output)
        except ServingError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - shown, with its traceback
            self._fault(error)

    def put_tokens(self, token_ids: list[int]) -> None:
        """Take the tokens of a step in the middle."""
        if self.sink is None:
            return
        try:
            self.sink.put(TokenDelta(token_ids=token_ids))
        except Exception as error:  # noqa: BLE001 - shown, with its traceback
            self._fault(error)

    def _fault(self, error: Exception) -> None:
        request_id = self.request.request_id
        log.error("request %s failed in the worker", request_id, exc_info=error)
        self.fail(EngineFailed("the worker failed on this request"))
        self._abort(request_id)


class PlainSteps:
    """Stands before `process_outputs` of vLLM's OutputProcessor, for the plain requests running.

    On its own way vLLM makes two objects and wakes a task per token, 15 µs; here it is 0.3.
    A request's first and last outputs still go through vLLM's method, which keeps the books:
    queue times, what runs, adapters. Its statistics per iteration miss the steps between; nobody
    reads them (worker/vllm_stats.py takes the scheduler's).
    """

    def __init__(self, processor: Any, running: dict[str, VllmRequest]) -> None:
        self._states = processor.request_states
        self._process_rest = processor.process_outputs
        self._running = running
        self._possible = processor.stream_interval == 1 and not processor.tracing_enabled
        if self._possible:
            # Before the first request: vLLM's output task keeps the processor, not the method.
            processor.process_outputs = self._process

    def fits(self, request: TokenRequest) -> bool:
        """Whether a request asks for nothing but tokens."""
        sampling = request.sampling
        return (
            self._possible
            and request.pooling is None
            and sampling.n == 1
            and sampling.logprobs is None
            and sampling.prompt_logprobs is None
            and sampling.logprob_token_ids is None
        )

    def _process(self, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        rest = []
        for output in outputs:
            state = self._states.get(output.request_id)
            if state is None:
                continue
            if state.is_prefilling:
                request = self._running.get(state.external_req_id)
                if isinstance(request, PlainRequest):
                    state.queue = request
            elif type(state.queue) is PlainRequest and _is_plain(output):
                state.queue.put_tokens(output.new_token_ids)
                continue
            rest.append(output)
        return self._process_rest(rest, *args, **kwargs)


def _is_plain(output: Any) -> bool:
    return output.finish_reason is None and not output.events
