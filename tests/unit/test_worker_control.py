"""A worker's model is loaded and unloaded, and its state told to others."""

import asyncio

import pytest

from runtime.errors import Draining, InvalidConfig, InvalidRequest, ServingError
from runtime.rpc import CallInfo
from tests.waiting import eventually
from wire.penstock_pb2 import CONTROL_LOAD, CONTROL_UNLOAD, ControlRequest
from wire.sampling import Sampling
from wire.tokens import TokenDelta, TokenRequest
from worker.card import make_card
from worker.control import ModelControl
from worker.service import WorkerService
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

INFO = CallInfo(method="Control")
REQUEST = TokenRequest(
    request_id="r", token_ids=[5] * 8, sampling=Sampling(max_tokens=8, ignore_eos=True)
)


class Answer:
    def __init__(self) -> None:
        self.final = False
        self.tokens = 0

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        self.tokens += len(delta.token_ids)
        self.final = final

    def fail(self, error: ServingError) -> None:
        raise error


class Told:
    """Takes what is announced; fails as often as it is told to."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.failures = 0

    async def __call__(self, state: str) -> None:
        if self.failures:
            self.failures -= 1
            raise InvalidConfig("the disk is full")
        self.states.append(state)


@pytest.fixture
async def service(model_folder):
    engine = SimEngine(SimConfig(timing=SimTiming(speedup=0)))
    made = WorkerService(engine, make_card(model_folder, "m", await engine.start()))
    yield made
    await engine.close()


async def test_an_unloaded_worker_refuses_and_ends_what_runs(service: WorkerService) -> None:
    told, answer = Told(), Answer()
    control = ModelControl(service, told)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(control.run())
        service.flights.begin(REQUEST, answer, None)
        said = await control.control(ControlRequest(action=CONTROL_UNLOAD), INFO)
        assert said.state == control.state == "unloading"
        assert not service.ready
        with pytest.raises(Draining, match="unloaded"):
            service.flights.begin(REQUEST, Answer(), None)
        await eventually(lambda: told.states[-1:] == ["unloaded"])
        assert (answer.final, answer.tokens) == (True, 8)
        assert (await control.control(ControlRequest(action=CONTROL_LOAD), INFO)).state == "ready"
        assert service.ready
        await eventually(lambda: told.states[-1] == "ready")
        running.cancel()


async def test_what_cannot_be_told_is_told_again(service: WorkerService) -> None:
    told = Told()
    told.failures = 2
    control = ModelControl(service, told)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(control.run())
        control.unload()
        await eventually(lambda: told.states == ["unloaded"])
        running.cancel()


async def test_a_repeated_call_tells_nothing(service: WorkerService) -> None:
    told = Told()
    control = ModelControl(service, told)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(control.run())
        control.load()
        control.unload()
        await eventually(lambda: told.states == ["unloaded"])
        control.unload()
        control.load()
        await eventually(lambda: told.states == ["unloaded", "ready"])
        running.cancel()


async def test_an_action_there_is_not_is_refused(service: WorkerService) -> None:
    control = ModelControl(service, Told())
    with pytest.raises(InvalidRequest, match="action"):
        await control.control(ControlRequest(), INFO)
    assert control.state == "ready"
