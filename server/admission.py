"""Gives admitted requests their places, at once or when one becomes free."""

import time
from collections.abc import Callable

from runtime.errors import ModelNotReady, Overloaded, shown_error
from runtime.request_record import QUEUED
from server.config import FrontDoorConfig
from server.flight import Flight
from server.models import ServedModel
from server.places import Places


class Admission:
    """The places of all models. `start` begins a request that has one; what it raises ends it.

    With `worker_concurrency` 0 there are no places, and everybody starts at once.
    """

    def __init__(self, config: FrontDoorConfig, start: Callable[[Flight], None]) -> None:
        self._config = config
        self._start = start
        self._places: dict[ServedModel, Places[Flight]] = {}
        self._filling: set[ServedModel] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many requests wait; may be asked by any thread."""
        return sum(places.waiting for places in list(self._places.values()))

    def enter(self, flight: Flight) -> bool:
        """Take a place, True, or wait for one, False; raises Overloaded when the queue is full."""
        config, request = self._config, flight.generation.request
        if not config.worker_concurrency:
            return True
        places = self._places_of(flight.model)
        if places.enter(flight, sequences=request.sampling.n, priority=request.priority):
            return True
        QUEUED.labels(flight.model.card.name).set(places.waiting)
        flight.record.waiting = True
        if config.queue_timeout_s:
            flight.call_later(config.queue_timeout_s, lambda: self._waited_too_long(flight))
        return False

    def leave(self, flight: Flight) -> None:
        """Give up the place, or the wait for one; the next in the queue starts."""
        places = self._places.get(flight.model)
        if places is not None:
            places.leave(flight)
            self._fill(places, flight.model)
            self._drop_unused(flight.model, places)

    def close(self) -> None:
        """Start nobody any more: all are about to end."""
        self._closed = True

    def workers_changed(self, model: ServedModel) -> None:
        """More workers are more places; without any nobody shall wait."""
        places = self._places.get(model)
        if places is None:
            return
        if model.ready:
            self._fill(places, model)
            return
        name = model.card.name
        for flight in places.everyone_waiting():
            error = ModelNotReady(f"model {name!r} has no ready worker", param="model")
            flight.generation.fail(error)
        self._drop_unused(model, places)

    def _drop_unused(self, model: ServedModel, places: Places[Flight]) -> None:
        """A model without workers may never have one again: another of its name may come."""
        if places.unused and not model.ready:
            self._places.pop(model, None)

    def _places_of(self, model: ServedModel) -> Places[Flight]:
        places = self._places.get(model)
        if places is None:
            each = self._config.worker_concurrency
            places = Places(lambda: len(model.links) * each, self._config.queue_limit)
            self._places[model] = places
        return places

    def _waited_too_long(self, flight: Flight) -> None:
        if flight.record.waiting:
            limit_s = self._config.queue_timeout_s
            flight.generation.fail(Overloaded(f"no place became free within {limit_s:g} s"))

    def _fill(self, places: Places[Flight], model: ServedModel) -> None:
        if model in self._filling:
            return  # a request that fails at its start leaves: the loop below goes on
        self._filling.add(model)
        try:
            while not self._closed and (flight := places.next()) is not None:
                self._start_queued(flight)
        finally:
            self._filling.discard(model)
        QUEUED.labels(model.card.name).set(places.waiting)

    def _start_queued(self, flight: Flight) -> None:
        flight.record.end_wait(time.monotonic())
        try:
            self._start(flight)
        except Exception as error:  # noqa: BLE001 - nobody else would end this request
            flight.generation.fail(shown_error(error, where="starting a queued request"))
