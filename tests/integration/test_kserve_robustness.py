"""Clients that cancel, time out, leave, send nonsense: the server stays up and forgets them."""

import asyncio
import gc
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import Code, ServingError
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from tests.integration.kserve_client import ask, ids_of, infer, is_final, open_stream
from tests.integration.stack import Stack, running_stack
from tests.unit.test_wire_tensors import WRONG
from tests.unit.wire_fuzz import requests
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

ROUNDS, STREAMS, CHANNELS = 20, 64, 4
QUICK = SimConfig(timing=SimTiming(speedup=6))
FAST = SimConfig(timing=SimTiming(speedup=0))
OURS = ("server", "runtime", "wire", "worker", "router")
EXPECTED = {
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.UNIMPLEMENTED,
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
}
"""What a fuzzed request may end with; UNAVAILABLE: it is pinned to a worker that is not there."""


def live_objects() -> Counter[str]:
    """How many objects of our own classes there are, by class."""
    gc.collect()
    kinds = (type(it) for it in gc.get_objects())
    return Counter(it.__qualname__ for it in kinds if str(it.__module__).partition(".")[0] in OURS)


def code_of(answer: Any) -> int:
    return int(answer.infer_response.parameters["penstock_code"].int64_param)


class Client:
    """One misbehaving client; `outcomes` counts how things ended that it did not end itself."""

    def __init__(self, channel: RpcChannel, seed: int, outcomes: Counter[str]) -> None:
        self._channel = channel
        self._random = random.Random(seed)
        self._outcomes = outcomes

    async def run(self) -> None:
        behaviour = self._random.choice(
            (self.reads_all, self.cancels, self.times_out, self.leaves_early, self.sends_garbage,
             self.cancels_unary)
        )  # fmt: skip
        try:
            await behaviour()
        except ServingError as error:
            self._outcomes[error.code.name] += 1

    def _requests(self) -> list[Any]:
        """Good and malformed ones; a good one says how many tokens it asks for in its id."""
        wanted = []
        for number in range(self._random.randint(1, 4)):
            if self._random.random() < 0.4:
                name = self._random.choice(sorted(WRONG))
                request = pb.ModelInferRequest.FromString(WRONG[name][0].SerializeToString())
                request.model_name, request.id = "sim", f"bad-{number}"
            else:
                tokens = self._random.randint(1, 60)
                request = ask(f"{tokens}-{number}", max_tokens=tokens)
            wanted.append(request)
        return wanted

    async def reads_all(self) -> None:
        wanted = self._requests()
        async with open_stream(self._channel) as stream:
            for request in wanted:
                stream.send(request)
            stream.half_close()
            answers = [answer async for answer in stream]
        for request in wanted:
            mine = [it for it in answers if it.infer_response.id == request.id]
            assert is_final(mine[-1].infer_response)
            if request.id.startswith("bad"):
                assert [code_of(it) for it in mine] == [Code.INVALID_ARGUMENT]
            else:
                tokens = sum(len(ids_of(it.infer_response)) for it in mine)
                assert tokens == int(request.id.partition("-")[0])
        self._outcomes["whole"] += 1

    async def cancels(self) -> None:
        wanted = self._requests()
        async with open_stream(self._channel) as stream:
            for request in wanted:
                stream.send(request)
            for _ in range(self._random.randint(0, len(wanted))):
                await anext(stream)
        self._outcomes["cancelled"] += 1

    async def times_out(self) -> None:
        limit_s = self._random.uniform(0.001, 0.1)
        async with self._channel.stream(KSERVE, "ModelStreamInfer", timeout_s=limit_s) as stream:
            stream.send(ask("4000-0", max_tokens=4000))
            async for _ in stream:
                pass

    async def leaves_early(self) -> None:
        async with open_stream(self._channel) as stream:
            if self._random.random() < 0.5:
                stream.send(ask("4000-0", max_tokens=4000))
            stream.half_close()
        self._outcomes["left"] += 1

    async def sends_garbage(self) -> None:
        async with open_stream(self._channel) as stream:
            stream.send(ask("4000-0", max_tokens=4000))
            stream.send(b"\xff" * self._random.randint(1, 50))
            async for _ in stream:
                pass

    async def cancels_unary(self) -> None:
        limit_s = self._random.uniform(0.001, 0.05)
        request = ask(stream=False, max_tokens=4000)
        await self._channel.unary(KSERVE, "ModelInfer", request, timeout_s=limit_s)


def running(stack: Stack) -> int:
    return stack.door.in_flight + stack.engine_load + stack.server.in_flight


@pytest.mark.usefixtures("each_transport")
async def test_rounds_of_misbehaving_clients_leave_nothing_behind(model_folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    levels: list[Counter[str]] = []
    async with running_stack(model_folder, workers=2, sim=QUICK) as stack:
        channels = [RpcChannel(stack.grpc, rpc_types=rpc_types) for _ in range(CHANNELS)]
        for each_round in range(ROUNDS):
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                for number in range(STREAMS):
                    seed = each_round * STREAMS + number
                    client = Client(channels[number % CHANNELS], seed, outcomes)
                    tasks.create_task(client.run())
            await eventually(lambda: running(stack) == 0)
            answer = await infer(channels[0], ask(stream=False, max_tokens=5))
            assert len(ids_of(answer)) == 5
            await eventually(lambda: running(stack) == 0)
            if each_round in (ROUNDS // 4, ROUNDS - 1):
                levels.append(live_objects())
        for channel in channels:
            await channel.close()
    assert outcomes.keys() == {
        "whole", "cancelled", "left", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"
    }, outcomes  # fmt: skip
    early, late = levels
    # A leak would leave some for each of 896 streams.
    assert {name: late[name] - early[name] for name in late if late[name] - early[name] > 20} == {}


async def outcomes_of(stack: Stack, asked: list[Any]) -> None:
    channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
    left = Counter(request.id for request in asked)
    async with asyncio.timeout(20), open_stream(channel) as stream:
        for request in asked:
            stream.send(request)
        stream.half_close()
        async for answer in stream:
            if answer.error_message:
                assert code_of(answer) in EXPECTED, answer
            left[answer.infer_response.id] -= is_final(answer.infer_response)
    assert not +left
    for request in asked:
        try:
            answer = await infer(channel, request)
            assert is_final(answer)
        except ServingError as error:
            assert error.code in EXPECTED, (request, error)  # noqa: PT017 - one of several ends
    assert len(ids_of(await infer(channel, ask(stream=False, max_tokens=5)))) == 5
    await eventually(lambda: running(stack) == 0)
    await channel.close()


@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large,
    ],
)  # fmt: skip
@given(st.lists(requests(), min_size=25, max_size=40))
def test_fuzzed_requests_end_with_an_answer_or_a_documented_status(
    model_folder: Path, asked: list[Any]
) -> None:
    async def serve() -> None:
        config = FrontDoorConfig(max_tokens_limit=32, max_choices=4)
        async with running_stack(model_folder, sim=FAST, config=config) as stack:
            await outcomes_of(stack, asked)

    asyncio.run(serve())
