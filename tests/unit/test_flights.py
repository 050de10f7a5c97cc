"""A worker's requests: each is counted by how it ended, and can be given up with an error."""

import asyncio
import time

import pytest

from runtime.errors import Draining, InvalidRequest, ServingError, WorkerLost
from wire.sampling import Sampling
from wire.tokens import TokenDelta, TokenRequest
from worker.flights import Flights
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming


class Kept:
    def __init__(self) -> None:
        self.finals = 0
        self.errors: list[ServingError] = []

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        self.finals += final

    def fail(self, error: ServingError) -> None:
        self.errors.append(error)


def asked(max_tokens: int = 5000, token_id: int = 1) -> TokenRequest:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return TokenRequest(request_id="a", token_ids=[token_id], sampling=sampling)


@pytest.fixture
def flights() -> Flights:
    return Flights(SimEngine(SimConfig(timing=SimTiming(speedup=0))))


async def test_every_request_is_counted_once_by_its_outcome(flights: Flights) -> None:
    flights.begin(asked(3), Kept(), None)
    flights.begin(asked(), Kept(), None).cancel()
    flights.begin(asked(), Kept(), time.monotonic() + 0.01)
    with pytest.raises(InvalidRequest):
        flights.begin(asked(token_id=-1), Kept(), None)
    async with asyncio.timeout(10):
        await flights.wait_idle()
    flights.draining = True
    with pytest.raises(Draining):
        flights.begin(asked(), Kept(), None)
    assert flights.outcomes == {
        "ok": 1,
        "cancelled": 1,
        "deadline_exceeded": 1,
        "invalid_request": 1,
        "draining": 1,
    }
    assert flights.output_tokens >= 3


async def test_what_is_given_up_gets_one_error_and_leaves_the_engine(flights: Flights) -> None:
    kept = [Kept() for _ in range(3)]
    for one in kept:
        flights.begin(asked(), one, None)
    assert flights.abandon(WorkerLost("stopped")) == 3
    assert flights.abandon(WorkerLost("stopped")) == 0
    await flights.engine.close()
    for one in kept:
        assert [error.message for error in one.errors] == ["stopped"]
        assert one.finals == 0
    assert len(flights) == flights.engine.load().waiting == 0
    assert flights.outcomes["worker_lost"] == 3
