"""BestWorker on the front door: where would a request in text go?"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtime.errors import InvalidRequest, ModelNotFound, ModelNotReady
from runtime.grpc_client import RpcChannel
from runtime.request_record import REQUESTS
from tests.integration.kserve_client import add_bytes, infer
from tests.integration.stack import Stack, running_stack
from tests.integration.test_kv_routing import FAST, agrees
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire import penstock_pb2
from wire.parameters import set_parameter
from wire.pool import FLEET, KSERVE, rpc_types

WAIT_S = 10.0
TEXT = "The quick brown fox jumps over the lazy dog. " * 20


@dataclass(frozen=True)
class Front:
    stack: Stack
    channel: RpcChannel

    async def best(self, request: Any) -> Any:
        asked = penstock_pb2.BestWorkerRequest(request=request)
        return await self.channel.unary(FLEET, "BestWorker", asked, timeout_s=WAIT_S)


@pytest.fixture
async def front(model_folder: Path) -> AsyncIterator[Front]:
    async with running_stack(model_folder, workers=2, sim=FAST) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        yield Front(stack, channel)
        await channel.close()


def text_request(text: str = TEXT, model: str = "sim", **parameters: Any) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    add_bytes(request, "text_input", text.encode())
    for name, value in parameters.items():
        set_parameter(request.parameters, name, value)
    return request


@pytest.mark.parametrize("name", ["worker-1", "worker-0"])
async def test_it_is_the_one_that_holds_the_beginning_and_nothing_is_sent(
    front: Front, name: str
) -> None:
    before = await front.best(text_request())
    assert before.prompt_blocks > 10
    assert before.overlap_blocks == 0
    assert front.stack.engine_load == front.stack.door.in_flight == 0
    await infer(front.channel, text_request(penstock_worker=name))
    await eventually(agrees(front.stack))
    for model in ("sim", ""):
        best = await front.best(text_request(model=model))
        assert best.worker_id == best.candidates[0].worker_id == name
        assert best.overlap_blocks == best.prompt_blocks == before.prompt_blocks
        assert [it.overlap_blocks for it in best.candidates] == [best.overlap_blocks, 0]
        assert best.candidates[0].cost < best.candidates[1].cost
        addresses = {worker.name: worker.address for worker in front.stack.workers}
        assert best.address == addresses[name]


async def test_pins_and_errors_are_those_of_the_request(front: Front) -> None:
    pinned = await front.best(text_request(penstock_worker="worker-1"))
    assert [it.worker_id for it in pinned.candidates] == ["worker-1"]
    with pytest.raises(ModelNotReady, match="worker 'worker-9' does not serve sim"):
        await front.best(text_request(penstock_worker="worker-9"))
    with pytest.raises(ModelNotFound, match="'none' is not served here"):
        await front.best(text_request(model="none"))
    with pytest.raises(InvalidRequest, match="text_input"):
        await front.best(pb.ModelInferRequest(model_name="sim"))
    with pytest.raises(ModelNotFound, match="version"):
        await front.best(pb.ModelInferRequest(model_name="sim", model_version="7"))
    # Questions are no requests.
    assert "BestWorker" not in {
        sample.labels["endpoint"] for family in REQUESTS.collect() for sample in family.samples
    }


async def test_without_a_worker_there_is_none(front: Front) -> None:
    for worker in front.stack.workers:
        await worker.leave()
    await eventually(lambda: not front.stack.door.is_ready())
    with pytest.raises(ModelNotReady, match="has no ready worker"):
        await front.best(text_request())


async def test_reflection_lists_and_describes_it(front: Front) -> None:
    async with grpc.aio.insecure_channel(front.stack.grpc) as raw:
        call = reflection_pb2_grpc.ServerReflectionStub(raw).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert {KSERVE, FLEET} <= {service.name for service in listed}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=FLEET))
        (file, *_) = (await call.read()).file_descriptor_response.file_descriptor_proto
        assert b"BestWorker" in file
        call.cancel()
