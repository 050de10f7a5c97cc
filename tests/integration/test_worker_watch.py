"""A worker's watches over its engine: what they find, and what they let pass."""

import asyncio
from typing import Any

import pytest

from runtime.errors import InvalidConfig
from tests.waiting import eventually
from wire.sampling import Sampling
from wire.tokens import TokenRequest
from worker.config import WorkerConfig
from worker.flights import Flights
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming
from worker.watch import EngineWatch

WAIT_S = 10.0
# Only what a test switches on may find anything.
QUIET: dict[str, Any] = {
    "model": "m",
    "probe_interval_s": 1000,
    "canary_interval_s": 0,
    "stall_timeout_s": 0,
}
LONG = 5000


class Answered:
    def __init__(self) -> None:
        self.error: Any = None

    def put(self, delta: Any, *, final: bool) -> None:
        pass

    def fail(self, error: Any) -> None:
        self.error = error


def watched(**settings: Any) -> tuple[SimEngine, Flights, EngineWatch]:
    engine = SimEngine(SimConfig(timing=SimTiming(speedup=1, step_ms=5)))
    flights = Flights(engine)
    return engine, flights, EngineWatch(flights, WorkerConfig(**(QUIET | settings)))


def begin(flights: Flights, max_tokens: int = LONG) -> Answered:
    answer = Answered()
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    flights.begin(TokenRequest(request_id="a", token_ids=[1, 2], sampling=sampling), answer, None)
    return answer


async def found(watch: EngineWatch) -> str:
    async with asyncio.timeout(WAIT_S):
        return await watch.run()


async def test_a_dead_engine_is_found() -> None:
    engine, _, watch = watched()
    engine.die("power cut")
    assert "power cut" in await found(watch)


async def test_an_idle_engine_that_hangs_is_found_by_the_canary() -> None:
    engine, _, watch = watched(canary_interval_s=0.05, canary_timeout_s=0.2)
    engine.hang()
    assert "the canary failed: no token within 0.2 s" in await found(watch)
    assert watch.canary_outcomes["deadline_exceeded"] == watch.canary_failures == 1
    assert watch.canary_ok_s is None
    await engine.close()


async def test_an_idle_engine_that_hangs_is_found_by_the_probe() -> None:
    engine, _, watch = watched(probe_interval_s=0.05, probe_timeout_s=0.1, stall_timeout_s=1000)
    engine.hang()
    assert "no answer for 0.1 s" in await found(watch)
    await engine.close()


async def test_an_engine_that_makes_no_step_while_a_request_runs_is_found() -> None:
    engine, flights, watch = watched(stall_timeout_s=0.2)
    begin(flights)
    await eventually(lambda: engine.load().steps > 2)
    assert not watch.stalled
    engine.hang()
    assert "no step for 0.2 s while 1 requests ran" in await found(watch)
    assert watch.stalled
    await engine.close()


async def test_a_long_step_is_the_stall_limits_matter_not_the_probes() -> None:
    engine, flights, watch = watched(
        probe_interval_s=0.01, probe_timeout_s=0.02, stall_timeout_s=0.5
    )
    begin(flights)
    engine.hang()
    assert "no step" in await found(watch)
    await engine.close()


async def test_canaries_of_a_sound_engine_end_well_and_are_no_requests() -> None:
    engine, flights, watch = watched(canary_interval_s=0.01, canary_tokens="5,6,7")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        await eventually(lambda: watch.canary_outcomes["ok"] >= 3)
        assert watch.canary_ok_s is not None
        assert watch.canary_failures == 0
        assert len(flights) == flights.output_tokens == flights.outcomes.total() == 0
        running.cancel()
    assert engine.load().running == 0
    await engine.close()


async def test_no_canary_is_sent_while_requests_run_and_none_of_it_finds_a_fault() -> None:
    engine, flights, watch = watched(
        canary_interval_s=0.01,
        canary_timeout_s=0.05,
        stall_timeout_s=30,
        probe_interval_s=0.01,
        probe_timeout_s=10,
    )
    begin(flights, max_tokens=60)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        async with asyncio.timeout(WAIT_S):
            await flights.wait_idle()
        assert watch.canary_outcomes.total() == 0
        assert not running.done()
        running.cancel()
    await engine.close()


async def test_a_canary_that_requests_overtake_is_no_fault() -> None:
    engine, flights, watch = watched(canary_interval_s=0.01, canary_timeout_s=0.1)
    engine.hang()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        await eventually(lambda: engine.load().waiting == 1)
        begin(flights)
        await eventually(lambda: engine.load().waiting == 1)  # the canary was taken back
        assert not running.done()
        assert watch.canary_outcomes.total() == 0
        running.cancel()
    await engine.close()


async def test_a_canary_that_is_no_prompt_of_this_engine_is_refused_by_its_flag() -> None:
    with pytest.raises(InvalidConfig) as caught:
        watched(canary_tokens="1,99999999")
    assert caught.value.param == "canary_tokens"
