"""Places of several models that depend on each other's requests."""

from typing import Any, cast

from runtime.errors import InvalidRequest, ServingError
from runtime.request_record import RequestRecord
from server.admission import Admission
from server.config import FrontDoorConfig
from server.flight import Flight
from server.generation import Generation
from server.models import ServedModel
from wire.cards import ModelCard
from wire.generate import GenerateRequest
from wire.sampling import make_sampling


class Owner:
    """Gives up a request's place when it is over, as the data plane does."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.bad: set[str] = set()
        self.flights: dict[Generation, Flight] = {}
        config = FrontDoorConfig(worker_concurrency=1, queue_limit=5)
        self.admission = Admission(config, self._start)

    def _start(self, flight: Flight) -> None:
        name = flight.generation.request.request_id
        if name in self.bad:
            raise InvalidRequest("no")
        self.started.append(name)

    def release(
        self, generation: Generation, *, cancel: bool, error: ServingError | None = None
    ) -> None:
        self.admission.leave(self.flights.pop(generation))

    def first_token(self, generation: Generation) -> None:
        pass

    def lost(self, generation: Generation, error: ServingError) -> bool:
        return False

    def asks(self, name: str, model: ServedModel) -> Generation:
        request = GenerateRequest(
            request_id=name, model=model.card.name, prompt="p", sampling=make_sampling({})
        )
        record = RequestRecord(request_id=name, endpoint="test", started_s=0.0)
        record.admitted(model.card.name)
        generation = Generation(request, self, record)
        flight = self.flights[generation] = Flight(generation, model, key=name)
        if self.admission.enter(flight):
            self._start(flight)
        return generation


def model(name: str) -> ServedModel:
    card = ModelCard(name=name, path="", context_length=8, vocab_size=8, block_size=8)
    served = ServedModel(card, cast("Any", None), cast("Any", None))
    served.links["w"] = cast("Any", None)
    return served


def test_a_request_that_fails_at_its_start_may_free_a_place_of_another_model() -> None:
    owner, one, other = Owner(), model("admission-a"), model("admission-b")
    first = owner.asks("a1", one)
    owner.bad.add("a2")
    failing = owner.asks("a2", one)
    running = owner.asks("b1", other)
    owner.asks("b2", other)
    assert owner.started == ["a1", "b1"]
    failing.on_ready = running.cancel
    first.cancel()
    assert owner.started == ["a1", "b1", "b2"]
    assert owner.admission.waiting == 0
