"""Workers that take requests and make no progress: others are preferred until they move."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from router.settings import RouterSettings
from runtime.grpc_client import RpcChannel
from runtime.rpc_client import RpcCaller, RpcStream
from server.config import FrontDoorConfig
from server.fleet import plain_channel
from server.metrics import STALLED
from tests.integration.kserve_client import infer, open_stream, read
from tests.integration.stack import SimWorker, Stack, running_stack
from tests.integration.test_kv_routing import FAST, laid_cable, prompt, token_request
from tests.waiting import eventually
from wire.pool import rpc_types

STALL_S = 0.3


@dataclass
class Serving:
    stack: Stack
    channel: RpcCaller

    async def went_to(self, seed: int) -> str:
        request = token_request(prompt(seed, 2), penstock_explain_route=True)
        worker: str = (
            (await infer(self.channel, request)).parameters["penstock_worker"].string_param
        )
        return worker


def config(policy: str) -> FrontDoorConfig:
    return FrontDoorConfig(routing=RouterSettings(policy=policy), worker_stall_s=STALL_S)


@asynccontextmanager
async def fleet(model_folder: Path, policy: str, **options: object) -> AsyncIterator[Serving]:
    async with running_stack(
        model_folder,
        workers=2,
        sim=FAST,
        config=config(policy),
        **options,  # type: ignore[arg-type]
    ) as stack:
        STALLED.labels("sim").set(0)  # another test's word
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        try:
            yield Serving(stack, channel)
        finally:
            await channel.close()


def send(stream: RpcStream, worker: SimWorker) -> None:
    """A request that goes to this worker and nowhere else."""
    stream.send(token_request(prompt(1, 2), penstock_worker=worker.name))


def stalled() -> float:
    return REGISTRY.get_sample_value("penstock_workers_stalled", {"model": "sim"}) or 0.0


POLICIES = ["kv", "round-robin"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_worker_that_hangs_is_passed_over_until_it_moves(
    model_folder: Path, policy: str
) -> None:
    async with fleet(model_folder, policy) as it, open_stream(it.channel) as stream:
        hanging, other = it.stack.workers
        hanging.engine.hang()
        send(stream, hanging)
        await eventually(lambda: stalled() == 1, limit_s=5)
        assert {await it.went_to(seed) for seed in range(6)} == {other.name}
        hanging.engine.resume()
        (*_, last) = await read(stream)
        assert not last.error_message
        await eventually(lambda: stalled() == 0, limit_s=5)
        # By round robin, or for its cache that holds the least.
        assert {await it.went_to(seed) for seed in range(10, 16)} == {hanging.name, other.name}


@pytest.mark.parametrize("policy", POLICIES)
async def test_when_all_hang_one_is_chosen_still(model_folder: Path, policy: str) -> None:
    async with fleet(model_folder, policy) as it, open_stream(it.channel) as stream:
        for worker in it.stack.workers:
            worker.engine.hang()
            send(stream, worker)
        await eventually(lambda: stalled() == 2, limit_s=5)
        stream.send(token_request(prompt(2, 2)))
        await eventually(lambda: it.stack.engine_load == 3)
        for worker in it.stack.workers:
            worker.engine.resume()
        answers = await read(stream, finals=3)
        assert not any(answer.error_message for answer in answers)
        await eventually(lambda: stalled() == 0, limit_s=5)


async def test_a_new_connection_to_a_worker_that_hangs_does_not_make_it_well(
    model_folder: Path,
) -> None:
    async with laid_cable() as cable:

        def connect(address: str) -> RpcCaller:
            """The first worker is at the other end of the cable."""
            return plain_channel(address) if cable.target else cable.connect(address)

        async with (
            fleet(model_folder, "round-robin", connect=connect) as it,
            open_stream(it.channel) as stream,
        ):
            hanging, other = it.stack.workers
            (model,) = it.stack.door._fleet.models()
            hanging.engine.hang()
            send(stream, hanging)
            await eventually(lambda: stalled() == 1, limit_s=5)
            cable.cut()
            (lost,) = await read(stream)
            assert "was lost" in lost.error_message
            await eventually(lambda: hanging.name in model.links)
            send(stream, hanging)
            await eventually(lambda: stalled() == 1 and hanging.engine.load().waiting > 0)
            assert {await it.went_to(seed) for seed in range(6)} == {other.name}
            hanging.engine.resume()
            assert not (await read(stream))[-1].error_message


async def test_a_worker_that_leaves_is_stalled_no_more(model_folder: Path) -> None:
    async with fleet(model_folder, "kv") as it, open_stream(it.channel) as stream:
        hanging, other = it.stack.workers
        hanging.engine.hang()
        send(stream, hanging)
        await eventually(lambda: stalled() == 1, limit_s=5)
        await hanging.leave()
        await eventually(lambda: stalled() == 0)
        assert await it.went_to(3) == other.name
        # What runs there goes on.
        hanging.engine.resume()
        assert not (await read(stream))[-1].error_message
