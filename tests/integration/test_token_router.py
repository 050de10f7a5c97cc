"""The token router over real workers: an engine to who calls it, held to the engine's contract."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cli.router_engine import RouterEngine
from router.router import BusyThresholds
from router.settings import RouterSettings
from runtime.discovery_memory import MemoryDiscovery
from runtime.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    ServingError,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from server.fleet import Fleet
from server.token_router import TokenRouter
from tests.contracts import engine_contract as contract
from tests.contracts.engine_asking import Collected, ask
from tests.contracts.engine_requests import PROMPT
from tests.integration.kserve_client import ids_of, infer, open_stream, read
from tests.integration.stack import SimWorker, grpc_server
from tests.integration.test_kv_routing import token_request
from tests.waiting import eventually
from wire.cards import ModelCard
from wire.pool import rpc_types
from wire.sampling import Sampling
from wire.tokens import TokenDelta, TokenRequest
from worker.card import make_card
from worker.service import WorkerService
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

QUICK = SimConfig(context_length=contract.CONTEXT, timing=SimTiming(speedup=100))
SLOW = SimConfig(context_length=contract.CONTEXT, timing=SimTiming(step_ms=5))

# What is true of engines alone: a router has no steps and no cache of its own, gets what the wire
# has read already, and a worker's refusal comes as the request's end.
OF_ENGINES = {
    "a_repeating_answer_is_ended_or_refused_as_unsupported",
    "a_structure_is_followed_or_refused_as_unsupported",
    "whole_numbers_of_numpy_are_taken_as_numbers",
    "bad_requests_name_their_field_and_the_engine_goes_on",
    "steps_are_counted_and_dated",
    "looked_up_and_found_tokens_of_the_cache_are_counted",
    "full_blocks_of_prompt_and_answer_are_told",
    "each_step_is_told_and_counted_by_its_rank",
}
CASES = sorted(contract.CASES.keys() - OF_ENGINES)


@dataclass
class Routed:
    fleet: Fleet
    workers: list[SimWorker]
    router: TokenRouter
    engine: RouterEngine
    card: ModelCard

    @property
    def engine_load(self) -> int:
        loads = [worker.engine.load() for worker in self.workers]
        return sum(load.running + load.waiting for load in loads)

    def holds_nothing(self) -> bool:
        """Whether no count of a request is left anywhere."""
        return (
            self.router.running == 0
            and self.router.model.router.active() == {}
            and not any(link.running for link in self.fleet.links_of(self.router.model))
        )

    def holder(self) -> SimWorker:
        """The worker whose engine has the only request."""
        (found,) = [
            it for it in self.workers if it.engine.load().running + it.engine.load().waiting
        ]
        return found


@asynccontextmanager
async def routed(
    folder: Path, sim: SimConfig, *, policy: str = "kv", workers: int = 2
) -> AsyncIterator[Routed]:
    discovery = MemoryDiscovery()
    settings = FrontDoorConfig(routing=RouterSettings(policy=policy), connect_retry_max_s=0.2)
    fleet = Fleet(settings, discovery, load_text=lambda card: None)
    async with AsyncExitStack() as resources, asyncio.TaskGroup() as tasks:
        resources.push_async_callback(discovery.close)
        started = []
        for number in range(workers):
            engine = SimEngine(sim)
            card = make_card(folder, "sim", engine.info)
            started.append(SimWorker(f"worker-{number}", card, engine))
            await started[-1].start(discovery)
            resources.push_async_callback(started[-1].stop)
        running = tasks.create_task(fleet.run())
        await eventually(lambda: sum(len(it.links) for it in fleet.models()) == workers)
        router = TokenRouter(fleet, "sim", policy)
        try:
            yield Routed(fleet, started, router, RouterEngine(router), card)
        finally:
            running.cancel()


@pytest.fixture
async def slow(model_folder: Path) -> AsyncIterator[Routed]:
    async with routed(model_folder, SLOW) as made:
        yield made


@pytest.fixture
async def channel(slow: Routed) -> AsyncIterator[RpcChannel]:
    """To a worker's service over the router."""
    server = grpc_server(WorkerService(slow.engine, slow.card).service)
    made = RpcChannel(await server.start(), rpc_types=rpc_types)
    yield made
    await made.close()
    await server.stop(0.0)


def retries() -> float:
    name = "penstock_request_retries_total"
    return REGISTRY.get_sample_value(name, {"model": "sim"}) or 0.0


@pytest.mark.parametrize("name", CASES)
async def test_it_keeps_the_contract_of_engines(model_folder: Path, name: str) -> None:
    # What a cache holds is heard a moment later: until then another worker is as good.
    async with routed(model_folder, QUICK, workers=1 if "cache" in name else 2) as it:
        await contract.CASES[name](it.engine)
        await eventually(it.holds_nothing)


async def test_any_kserve_client_gets_every_choice_and_one_end_of_each(
    slow: Routed, channel: RpcChannel
) -> None:
    async with open_stream(channel) as stream:
        stream.send(token_request(PROMPT, 6, n=3, temperature=1.0, seed=7))
        answers = [answer.infer_response for answer in await read(stream)]
    ends = [it.parameters["choice"].int64_param for it in answers if _finish(it) == "length"]
    assert sorted(ends) == [0, 1, 2]
    assert sum(len(ids_of(it)) for it in answers) == 18
    await eventually(slow.holds_nothing)


def _finish(response: Any) -> str:
    names = [output.name for output in response.outputs]
    raw: bytes = response.raw_output_contents[names.index("finish_reason")]
    return raw[4:].decode()


async def test_a_client_that_leaves_frees_the_workers_engine(
    slow: Routed, channel: RpcChannel
) -> None:
    async with open_stream(channel) as stream:
        for number in range(4):
            stream.send(token_request([number, *PROMPT], 150))
        await eventually(lambda: slow.engine_load == 4)
        assert sum(it.requests for it in slow.router.model.router.active().values()) == 4
    await eventually(lambda: slow.engine_load == 0)
    await eventually(slow.holds_nothing)


async def test_a_request_without_a_token_goes_on_where_a_worker_is_left(slow: Routed) -> None:
    before = retries()
    for worker in slow.workers:
        worker.engine.hang()
    sink = ask(slow.engine)
    await eventually(lambda: slow.engine_load == 1)
    lost = slow.holder()
    for worker in slow.workers:
        if worker is not lost:
            worker.engine.resume()
    await lost.stop()
    await sink.wait()
    assert sink.error is None
    assert len(sink.ids()) == 8
    assert retries() == before + 1
    assert slow.holds_nothing()


async def test_a_worker_that_drains_refuses_and_another_one_takes_the_request(
    slow: Routed,
) -> None:
    for drained in slow.workers:
        drained.service.drain()
        sinks = [ask(slow.engine, [number, 5], request_id=str(number)) for number in range(4)]
        for sink in sinks:
            assert (await sink.wait()).error is None
        drained.service.flights.draining = False
    assert slow.holds_nothing()


async def test_an_answer_that_has_begun_ends_with_the_loss_of_its_worker_once(
    slow: Routed,
) -> None:
    before = retries()
    sink = ask(slow.engine, max_tokens=150)
    await eventually(sink.first.is_set)
    await slow.holder().stop()
    await sink.wait()
    assert isinstance(sink.error, WorkerLost)
    assert 0 < len(sink.ids()) < 150
    assert retries() == before
    assert slow.holds_nothing()
    # The other one serves on, and nothing more is said of the first request.
    assert (await ask(slow.engine, request_id="b").wait()).error is None


async def test_when_all_workers_are_lost_the_first_loss_is_told_once(slow: Routed) -> None:
    for worker in slow.workers:
        worker.engine.hang()
    sinks = [ask(slow.engine, request_id=str(number)) for number in range(4)]
    await eventually(lambda: slow.engine_load == 4)
    for worker in slow.workers:
        await worker.stop()
    for sink in sinks:
        assert isinstance((await sink.wait()).error, WorkerLost)
    assert slow.holds_nothing()
    assert slow.engine.failure == "no worker is ready"
    with pytest.raises(ModelNotReady):
        ask(slow.engine)
    with pytest.raises(EngineFailed):
        await slow.engine.probe(1.0)
    assert slow.holds_nothing()


BAD: dict[str, dict[str, Any]] = {
    "stop_token_ids": {"stop_token_ids": (10**6,)},
    "lora_name": {"lora_name": "/nowhere"},
    "min_tokens": {"min_tokens": 9, "max_tokens": 8},
    "data_parallel_rank": {"data_parallel_rank": 7},
    "priority": {"priority": 2**70},
}


@pytest.mark.parametrize("param", list(BAD))
async def test_a_clients_error_is_its_own_and_counts_against_nobody(
    slow: Routed, param: str
) -> None:
    before = retries()
    for number in range(3):
        try:
            error = (await ask(slow.engine, request_id=str(number), **BAD[param]).wait()).error
        except ServingError as raised:
            error = raised
        assert isinstance(error, InvalidRequest)
        assert error.param == param
    assert retries() == before
    assert slow.holds_nothing()
    assert len(slow.router.model.links) == 2
    assert (await ask(slow.engine).wait()).error is None


async def test_ids_that_are_no_tokens_are_the_clients_error_on_the_wire(
    slow: Routed, channel: RpcChannel
) -> None:
    for wrong in (-1, 2**31 - 1, 2**32 + 5, 2**62):
        request = token_request([])
        del request.inputs[:], request.raw_input_contents[:]
        request.inputs.add(name="input_ids", datatype="INT64", shape=[2])
        ids = (5).to_bytes(8, "little") + wrong.to_bytes(8, "little", signed=True)
        request.raw_input_contents.append(ids)
        with pytest.raises(InvalidRequest, match="input_ids"):
            await infer(channel, request)
        assert slow.holds_nothing()
    assert len(ids_of(await infer(channel, token_request(PROMPT)))) == 4


async def test_busy_workers_are_the_callers_to_wait_for(model_folder: Path) -> None:
    async with routed(model_folder, SLOW, workers=1) as it:
        it.router.model.router.thresholds = BusyThresholds(active_decode_blocks=0.0)
        running = ask(it.engine, max_tokens=150)
        with pytest.raises(Overloaded):
            ask(it.engine, request_id="b")
        assert it.router.running == 1
        it.engine.cancel("a")
        assert it.holds_nothing()
        assert not running.over.is_set()
        assert (await ask(it.engine, request_id="b").wait()).error is None


class Broken(Collected):
    """A sink that cannot take what it is given."""

    def put(self, delta: TokenDelta) -> None:
        super().put(delta)
        raise RuntimeError("no room")


class Deaf(Collected):
    """A sink that cannot even be told of its end."""

    def fail(self, error: ServingError) -> None:
        super().fail(error)
        raise RuntimeError("not now")


async def test_a_sink_that_cannot_be_failed_costs_no_other_its_end(slow: Routed) -> None:
    sinks = [Deaf() if number % 2 else Collected() for number in range(8)]
    for number, sink in enumerate(sinks):
        sampling = Sampling(max_tokens=170, ignore_eos=True)
        request = TokenRequest(request_id=str(number), token_ids=PROMPT, sampling=sampling)
        slow.engine.submit(request, sink)
    for sink in sinks:
        await eventually(sink.first.is_set)
    for worker in slow.workers:
        await worker.stop()
    for sink in sinks:
        assert isinstance((await sink.wait()).error, WorkerLost)
    assert slow.holds_nothing()


async def test_a_sink_that_breaks_costs_its_own_request_and_its_workers_engine_is_free(
    slow: Routed,
) -> None:
    sink = Broken()
    request = TokenRequest(
        request_id="broken", token_ids=PROMPT, sampling=Sampling(max_tokens=170, ignore_eos=True)
    )
    slow.engine.submit(request, sink)
    await sink.wait()
    assert isinstance(sink.error, EngineFailed)
    assert len(sink.deltas) == 1
    assert slow.holds_nothing()
    await eventually(lambda: slow.engine_load == 0, limit_s=0.5)
    assert (await ask(slow.engine).wait()).error is None
