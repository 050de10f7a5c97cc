"""A request's way through the front door: admit, encode, choose a worker, relay, account."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from runtime.access import Limits, Unlimited
from runtime.errors import (
    DeadlineExceeded,
    Draining,
    Overloaded,
    ServingError,
    Stalled,
    WorkerLost,
    shown_error,
)
from runtime.request_record import OK, UNKNOWN_MODEL, RequestRecord
from runtime.tracing import Tracing
from runtime.turns import call_in_turn
from server.admission import Admission
from server.config import FrontDoorConfig
from server.fleet import Fleet
from server.flight import Flight, token_request
from server.generation import Generation
from server.group_statistics import GroupStatistics
from server.limits import deadline_of, stall_of, within_limits
from server.metrics import CANCELS, RETRIES
from server.models import ServedModel
from server.request_trace import RequestTrace
from server.routing import choose, route_request, shown_route, started
from server.text.codec import EncodedPrompt
from server.text_desk import TextDesk
from server.trace_settings import TraceSettings
from wire.cards import ModelCard
from wire.generate import GenerateDelta, GenerateRequest, OnText, Tokenized

_LOOK_S = 0.5


class DataPlane:
    """Runs generations over the fleet (a wire.generate.Backend, and the owner of generations).

    `statistics` holds what came of the requests of each model.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: FrontDoorConfig,
        *,
        texts: TextDesk,
        tracing: Tracing | None = None,
        limits: Limits | None = None,
        traces: TraceSettings | None = None,
    ) -> None:
        self._fleet = fleet
        self._tracing = tracing or Tracing()
        self.traces = traces or TraceSettings(collector=bool(self._tracing))
        self._config = config
        self._limits = limits or Unlimited()
        self._texts = texts
        self._flights: dict[Generation, Flight] = {}
        self._admission = Admission(config, self._start)
        self._keys = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()
        self._look_timer: asyncio.TimerHandle | None = None
        self._giving_up = False
        self.withdrawn = False
        self.draining = False
        self.statistics = GroupStatistics(config.group_folder)
        fleet.on_workers_change = self._admission.workers_changed

    @property
    def in_flight(self) -> int:
        """Requests admitted and not over."""
        return len(self._flights)

    @property
    def queued(self) -> int:
        """Requests among them that wait for a place."""
        return self._admission.waiting

    def withdraw(self) -> None:
        """Say that nothing is ready from now on; requests are still taken."""
        self.withdrawn = True

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def fail_all(self, error: ServingError) -> None:
        """End every running request with `error`."""
        self._giving_up = True
        self._admission.close()
        for generation in list(self._flights):
            generation.fail(error)

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def begin(self, request: GenerateRequest) -> Generation:
        """Admit a request; raises ServingError when it cannot be admitted.

        A short prompt that need not wait reaches its worker before this returns. Later failures
        come from the generation's `take`.
        """
        record = RequestRecord(
            request_id=request.request_id,
            endpoint=request.endpoint,
            principal=request.principal,
            started_s=time.monotonic(),
        )
        trace = self._trace(request, record)
        try:
            model = self._admit(request, record)
            if not request.model:
                request = msgspec.structs.replace(request, model=model.card.name)
            request = within_limits(model.with_adapter(request), self._config)
            deadline_s = deadline_of(request, self._config, record.started_s)
            if deadline_s is not None and deadline_s <= record.started_s:
                raise DeadlineExceeded("the deadline passed before the request began")
            self._limits.enter(request.principal)
        except ServingError as error:
            now = time.monotonic()
            record.end(error.reason, now, error.message)
            self._count(record, error, sent_s=0.0, streamed=request.stream, now=now)
            if trace is not None:
                trace.end(record, error.reason, now)
            raise
        generation = Generation(request, self, record)
        flight = Flight(generation, model, key=str(next(self._keys)), trace=trace)
        self._enter(flight, deadline_s)
        return generation

    async def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        """Run one request; closing the iterator cancels it."""
        ready = asyncio.Event()
        generation = self.begin(request)
        generation.on_ready = ready.set
        if request.stream and request.sampling.n == 1:
            generation.on_text = on_text
        try:
            while True:
                await ready.wait()
                ready.clear()
                while (delta := generation.take()) is not None:
                    yield delta
                    if delta.final:
                        return
        finally:
            generation.cancel()

    async def models(self) -> list[ModelCard]:
        """The cards of every known model."""
        return [model.card for model in self._fleet.models()]

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether `model` has a worker, or without a name any model."""
        ready = self._fleet.is_ready() if model is None else self._fleet.model(model).ready
        return ready and not self.withdrawn

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        """Encode a prompt."""
        return await self._texts.tokenize(request, with_strings=with_strings)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        return await self._texts.detokenize(model, token_ids)

    def release(
        self, generation: Generation, *, cancel: bool, error: ServingError | None = None
    ) -> None:
        """Free the generation's timers, place, worker slot; account for how it ended."""
        flight = self._flights.pop(generation, None)
        if flight is None:
            return
        flight.cancel_timers()
        if flight.encoding is not None:
            flight.encoding.cancel()
        self._limits.leave(generation.request.principal)
        if flight.link is not None:
            if cancel:
                flight.link.cancel(flight.slot)
                CANCELS.labels(flight.record.model).inc()
            else:
                flight.link.finished(flight.slot)
            flight.model.router.finished(flight.key, time.monotonic())
        now = time.monotonic()
        outcome, detail = (OK, None) if error is None else (error.reason, error.message)
        flight.record.end(outcome, now, detail)
        streamed = generation.request.stream
        self._count(flight.record, error, sent_s=flight.sent_s, streamed=streamed, now=now)
        if flight.trace is not None:
            flight.trace.end(flight.record, None if error is None else error.reason, now)
        self._admission.leave(flight)
        if not self._flights:
            self._idle.set()

    def first_token(self, generation: Generation) -> None:
        """Tell the router that the prompt has been computed."""
        flight = self._flights.get(generation)
        if flight is not None:
            flight.told_tokens = 1
            flight.model.router.advanced(flight.key, 1, time.monotonic())

    def lost(self, generation: Generation, error: ServingError) -> bool:
        """The worker failed the request: before its first token another one may take it."""
        flight = self._flights.get(generation)
        if (
            flight is None
            or flight.link is None
            or flight.prompt is None
            or flight.record.first_s is not None
            or self._giving_up
            or not isinstance(error, WorkerLost | Draining)
        ):
            return False
        flight.failed_workers |= {flight.link.instance.instance_id}
        flight.link.finished(flight.slot)
        flight.link = None
        flight.model.router.finished(flight.key, time.monotonic())
        try:
            self._send(flight, flight.prompt)
        except ServingError:
            return False
        RETRIES.labels(flight.record.model).inc()
        return True

    def _trace(self, request: GenerateRequest, record: RequestRecord) -> RequestTrace | None:
        if not self._tracing:
            return None
        model, from_client = self._fleet.name_of(request.model), request.traceparent is not None
        if not self.traces.samples(model, from_client=from_client):
            return None
        return RequestTrace(self._tracing, request, record.started_s)

    def _count(
        self,
        record: RequestRecord,
        error: ServingError | None,
        *,
        sent_s: float,
        streamed: bool,
        now: float,
    ) -> None:
        if record.model != UNKNOWN_MODEL:
            known = self.statistics.own[record.model]
            known.ended(record, error, sent_s=sent_s, streamed=streamed, now=now)

    def _admit(self, request: GenerateRequest, record: RequestRecord) -> ServedModel:
        if self.draining:
            raise Draining("the server is stopping and takes no new requests")
        model = self._fleet.model(request.model)
        record.known_as(model.card.name)
        model.check_task(request)
        if not model.ready:
            raise self._fleet.not_ready(model)
        if self._config.max_in_flight and len(self._flights) >= self._config.max_in_flight:
            raise Overloaded(f"{len(self._flights)} requests are in flight; try again later")
        return model

    def _enter(self, flight: Flight, deadline_s: float | None) -> None:
        generation, record = flight.generation, flight.record
        self._flights[generation] = flight
        self._idle.clear()
        record.admitted(record.model)
        if deadline_s is not None:
            late = DeadlineExceeded("the deadline passed before the final response")
            flight.call_later(deadline_s - record.started_s, lambda: generation.fail(late))
        try:
            if self._admission.enter(flight):
                self._start(flight)
        except BaseException as error:
            generation.ended = True
            shown = error if isinstance(error, ServingError) else None
            self.release(generation, cancel=True, error=shown or ServingError("not started"))
            raise

    def _start(self, flight: Flight) -> None:
        if flight.trace is not None:
            flight.trace.step("admit", time.monotonic())
        codec, request = flight.model.codec, flight.generation.request
        if codec.is_long(request):
            encoding = self._texts.encoding(codec, request)
            encoding.add_done_callback(lambda done: self._encoded(flight, done))
            flight.encoding = encoding
        else:
            self._dispatch(flight, codec.encode_request(request))

    def _encoded(self, flight: Flight, done: "asyncio.Future[EncodedPrompt]") -> None:
        if done.cancelled():
            return
        # Each may take milliseconds.
        call_in_turn(self._dispatch_long, flight, done)

    def _dispatch_long(self, flight: Flight, done: "asyncio.Future[EncodedPrompt]") -> None:
        if flight.generation.ended:
            done.exception()  # nobody asks for it any more
            return
        try:
            self._dispatch(flight, done.result())
        except Exception as error:  # noqa: BLE001 - nobody else would end this request
            flight.generation.fail(shown_error(error, where="encoding a prompt"))

    def _dispatch(self, flight: Flight, prompt: EncodedPrompt) -> None:
        flight.generation.begin(flight.model.codec, prompt)
        flight.prompt = prompt
        if flight.trace is not None:
            flight.trace.step("tokenize", time.monotonic())
        self._send(flight, prompt)

    def _send(self, flight: Flight, prompt: EncodedPrompt) -> None:
        generation, model = flight.generation, flight.model
        request = generation.request
        route = route_request(request, prompt, key=flight.key, exclude=flight.failed_workers)
        choice = choose(model, route, self._config.routing.policy)
        now = time.monotonic()
        # Switched off at run time, tracing ends here for the worker too.
        traceparent = None if self._tracing else request.traceparent
        if flight.trace is not None:
            flight.trace.step("route", now)
            traceparent = flight.trace.relay(choice.worker_id, now)
        link = model.links[choice.worker_id]
        rank = link.asked_rank(choice.rank)
        tokens = token_request(request, prompt, model.card, rank=rank, traceparent=traceparent)
        flight.slot = link.submit(tokens, generation)
        flight.link = link
        flight.sent_s = now
        flight.record.worker = choice.worker_id
        flight.told_tokens = 0
        started(model, route, choice, now)
        if request.explain_route:
            generation.route = shown_route(choice)
        self._look_later()

    def _look_later(self) -> None:
        if self._look_timer is None:
            limits = [self._config.first_token_timeout_s, self._config.token_timeout_s]
            look_s = min([_LOOK_S, *(limit / 4 for limit in limits if limit)])
            self._look_timer = asyncio.get_running_loop().call_later(look_s, self._look)

    def _look(self) -> None:
        """Tell routers how far answers have come, and end what is stuck."""
        self._look_timer = None
        now = time.monotonic()
        for generation, flight in list(self._flights.items()):
            record = flight.record
            if flight.link is None:
                continue
            fresh = record.output_tokens - flight.told_tokens
            if fresh > 0:
                flight.told_tokens += fresh
                flight.model.router.advanced(flight.key, fresh, now)
            why = stall_of(
                self._config, sent_s=flight.sent_s, first_s=record.first_s, last_s=record.last_s,
                now=now,
            )  # fmt: skip
            if why:
                generation.fail(Stalled(f"worker {record.worker} is stuck: {why}"))
        if self._flights:
            self._look_later()
