"""Accepted requests: each ends in exactly one of final delta, error, or its client's cancel."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from runtime.errors import Cancelled, DeadlineExceeded, Draining, ServingError
from runtime.tracing import Tracing
from wire.generate import Usage
from wire.tokens import TokenDelta, TokenRequest
from worker.engine import Engine
from worker.spans import RequestSpans

log = logging.getLogger(__name__)

OK = "ok"


class Answer(Protocol):
    """Where a flight's results go; must not block or raise."""

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        """Take the next delta; `final` marks the request's last one."""
        ...

    def fail(self, error: ServingError) -> None:
        """Take the error that ends the request."""
        ...


class Flight:
    """One accepted request (the engine's TokenSink): counts its tokens and knows its end."""

    def __init__(
        self,
        flights: "Flights",
        engine_id: str,
        request: TokenRequest,
        spans: RequestSpans | None = None,
    ) -> None:
        self.engine_id = engine_id
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._prompt_tokens = len(request.token_ids)
        self._open_choices = request.sampling.n
        self._flights = flights
        self._spans = spans
        self._answer: Answer | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )

    def open(self, answer: Answer, deadline_s: float | None) -> None:
        """Begin to answer; `deadline_s` in `time.monotonic` seconds."""
        self._answer = answer
        if deadline_s is not None:
            left_s = max(0.0, deadline_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def put(self, delta: TokenDelta) -> None:
        """Take the engine's next delta."""
        if self._answer is None:
            return
        tokens = len(delta.token_ids)
        self.completion_tokens += tokens
        self._flights.output_tokens += tokens
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
            if self._spans is not None:
                self._spans.note_first(delta.queued_s)
        if delta.finish_reason is not None:
            self._open_choices -= 1
        answer, final = self._answer, self._open_choices == 0
        if final:
            self._end(OK)
        answer.put(delta, final=final)

    def fail(self, error: ServingError) -> None:
        """Take the engine's error."""
        if self._answer is not None:
            answer = self._answer
            self._end(error.reason)
            answer.fail(error)

    def cancel(self) -> None:
        """End it in the engine, with no word to its answer. Does nothing after the end."""
        if self._answer is not None:
            self._end(Cancelled.reason)
            self._flights.engine.cancel(self.engine_id)

    def abandon(self, error: ServingError) -> None:
        """End it in the engine and its answer with `error`."""
        if self._answer is not None:
            self._flights.engine.cancel(self.engine_id)
            self.fail(error)

    def _expire(self) -> None:
        self.abandon(DeadlineExceeded("the deadline passed before the answer was complete"))

    def _end(self, outcome: str) -> None:
        self._answer = None
        if self._timer is not None:
            self._timer.cancel()
        self._flights.ended(self, outcome)
        if self._spans is not None:
            self._spans.end(self.usage, None if outcome == OK else outcome)


class Flights:
    """All running requests of a worker, and what came of those before them.

    `outcomes` counts requests by how they ended: "ok", or the reason of the error. New requests are
    refused while `draining` or `unloaded`. `on_idle` is called when the last one has ended.
    """

    def __init__(self, engine: Engine, model: str = "", tracing: Tracing | None = None) -> None:
        self.engine = engine
        self.draining = False
        self.unloaded = False
        self.on_idle: Callable[[], None] = _nobody
        self.outcomes: Counter[str] = Counter({OK: 0})
        self.output_tokens = 0
        self.frames_sent = 0
        self._model = model
        self._tracing = tracing or Tracing()
        self._running: dict[str, Flight] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """Requests accepted and not ended."""
        return len(self._running)

    def begin(self, request: TokenRequest, answer: Answer, deadline_s: float | None) -> Flight:
        """Give a request to the engine.

        The engine's id is made here: clients may use one id for several requests. Raises a
        ServingError, and nothing was started: Draining, DeadlineExceeded, or the engine's.
        """
        try:
            flight = self._submit(request, deadline_s)
        except ServingError as error:
            self.outcomes[error.reason] += 1
            raise
        self._running[flight.engine_id] = flight
        self._idle.clear()
        flight.open(answer, deadline_s)
        return flight

    def ended(self, flight: Flight, outcome: str) -> None:
        """Forget a flight; only for the flight itself."""
        self.outcomes[outcome] += 1
        del self._running[flight.engine_id]
        if not self._running:
            self._idle.set()
            self.on_idle()

    def abandon(self, error: ServingError) -> int:
        """End all that run with `error`; returns how many that were."""
        left = list(self._running.values())
        for flight in left:
            flight.abandon(error)
        return len(left)

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    def _submit(self, request: TokenRequest, deadline_s: float | None) -> Flight:
        if self.draining:
            raise Draining("the worker is stopping and takes no new requests")
        if self.unloaded:
            # The front door has not heard yet: another worker may take the request.
            raise Draining("the model is unloaded on this worker")
        if deadline_s is not None and deadline_s <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the request began")
        spans = None
        if self._tracing and request.traceparent is not None:
            spans = RequestSpans(self._tracing, request.traceparent, self._model)
        flight = Flight(self, f"r{next(self._numbers)}", request, spans)
        self.engine.submit(msgspec.structs.replace(request, request_id=flight.engine_id), flight)
        return flight


def _nobody() -> None:
    """Nobody waits for the end."""
