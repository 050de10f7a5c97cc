"""A request's way through the front door: admit, encode, choose a worker, relay, account."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from router.router import RouteRequest
from runtime.access import Limits, Unlimited
from runtime.errors import (
    DeadlineExceeded,
    Draining,
    ModelNotReady,
    ServingError,
    shown_error,
)
from server.config import FrontDoorConfig
from server.fleet import Fleet, ServedModel
from server.generation import Generation
from server.text.codec import EncodedPrompt
from server.worker_link import WorkerLink
from wire.cards import ModelCard
from wire.generate import GenerateDelta, GenerateRequest
from wire.sampling import fit_to_context
from wire.tokens import TokenRequest


@dataclass(slots=True)
class _Flight:
    """Where a running generation is."""

    model: ServedModel
    key: str
    timer: asyncio.TimerHandle | None = None
    link: WorkerLink | None = None
    slot: int = -1


class DataPlane:
    """Runs generations over the fleet (a wire.generate.Backend, and the owner of generations)."""

    def __init__(
        self,
        fleet: Fleet,
        config: FrontDoorConfig,
        *,
        text_threads: Executor | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._limits = limits or Unlimited()
        self._text_threads = text_threads
        self._flights: dict[Generation, _Flight] = {}
        self._draining = False
        self._keys = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests admitted and not over."""
        return len(self._flights)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def begin(self, request: GenerateRequest) -> Generation:
        """Admit a request; raises ServingError when it cannot be admitted.

        Short prompts reach their worker before this returns. Later failures come from the
        generation's `take`.
        """
        if self._draining:
            raise Draining("the server is stopping and takes no new requests")
        model = self._fleet.model(request.model)
        if not model.ready:
            raise ModelNotReady(f"model {request.model!r} has no ready worker", param="model")
        generation = Generation(request, self)
        deadline_s = self._deadline(request)
        loop = asyncio.get_running_loop()
        flight = _Flight(model, key=str(next(self._keys)))  # clients may repeat their ids
        if deadline_s is not None and deadline_s <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the request began")
        self._limits.enter(request.principal)
        if deadline_s is not None:
            # loop.time() is time.monotonic() on asyncio and uvloop.
            delay = deadline_s - time.monotonic()
            flight.timer = loop.call_later(delay, self._expire, generation)
        self._flights[generation] = flight
        self._idle.clear()
        try:
            if model.codec.is_long(request):
                encode = model.codec.encode_request
                future = loop.run_in_executor(self._text_threads, encode, request)
                future.add_done_callback(lambda done: self._encoded(generation, done))
                return generation
            self._dispatch(generation, flight, model.codec.encode_request(request))
        except BaseException:
            generation.ended = True
            self.release(generation, cancel=True)
            raise
        return generation

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        """Run one request; closing the iterator cancels it."""
        ready = asyncio.Event()
        generation = self.begin(request)
        generation.on_ready = ready.set
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
        return self._fleet.is_ready() if model is None else self._fleet.model(model).ready

    def release(self, generation: Generation, *, cancel: bool) -> None:
        """Free the generation's worker slot, timer and place in the router."""
        flight = self._flights.pop(generation, None)
        if flight is None:
            return
        self._limits.leave(generation.request.principal)
        if flight.timer is not None:
            flight.timer.cancel()
        if flight.link is not None:
            if cancel:
                flight.link.cancel(flight.slot)
            else:
                flight.link.finished(flight.slot)
            flight.model.router.finished(flight.key, time.monotonic())
        if not self._flights:
            self._idle.set()

    def lost(self, generation: Generation, error: ServingError) -> bool:
        """The worker failed the request: nobody takes over yet, so the error stands."""
        return False

    def _deadline(self, request: GenerateRequest) -> float | None:
        limits = [request.deadline_s] if request.deadline_s is not None else []
        limits += [
            time.monotonic() + seconds
            for seconds in (request.timeout_s, self._config.request_timeout_s or None)
            if seconds is not None
        ]
        return min(limits, default=None)

    def _encoded(self, generation: Generation, done: "asyncio.Future[EncodedPrompt]") -> None:
        flight = self._flights.get(generation)
        if flight is None or done.cancelled():
            return
        try:
            self._dispatch(generation, flight, done.result())
        except Exception as error:  # noqa: BLE001 - nobody else would end this request
            generation.fail(shown_error(error, where="encoding a prompt"))

    def _dispatch(self, generation: Generation, flight: _Flight, prompt: EncodedPrompt) -> None:
        request = generation.request
        tokens = token_request(request, prompt, flight.model.card)
        route = RouteRequest(
            request_id=flight.key,
            token_ids=prompt.token_ids,
            lora_name=request.lora_name,
            session_id=request.session_id,
        )
        choice = flight.model.router.choose(route, time.monotonic())
        if choice is None:
            raise ModelNotReady(f"model {request.model!r} has no ready worker", param="model")
        generation.begin(flight.model.codec, prompt)
        link = flight.model.links[choice.worker_id]
        flight.slot = link.submit(tokens, generation)
        flight.link = link
        flight.model.router.started(route, choice, time.monotonic())

    def _expire(self, generation: Generation) -> None:
        generation.fail(DeadlineExceeded("the deadline passed before the final response"))


def token_request(request: GenerateRequest, prompt: EncodedPrompt, card: ModelCard) -> TokenRequest:
    """Build the worker's request; raises ContextLengthExceeded when the prompt leaves no room."""
    fields = ("messages", "prompt_token_ids")
    sampling = fit_to_context(
        request.sampling,
        prompt_tokens=len(prompt.token_ids),
        context_length=card.context_length,
        param=next((it for it in fields if getattr(request, it) is not None), "prompt"),
    )
    # Stop strings are the front door's; the worker handles tokens only.
    sampling = msgspec.structs.replace(sampling, stop=())
    return TokenRequest(
        request_id=request.request_id,
        token_ids=prompt.token_ids,
        sampling=sampling,
        lora_name=request.lora_name,
        priority=request.priority,
        cache_salt=request.cache_salt,
        session_id=request.session_id,
    )
