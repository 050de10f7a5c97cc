"""Requests and workers that mean harm: one clear error each, and everything else goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.discovery import Record
from runtime.discovery_memory import MemoryDiscovery
from runtime.errors import ServingError
from runtime.grpc_client import RpcChannel
from runtime.rpc import Call, Service
from server.config import FrontDoorConfig
from server.front_door import FrontDoor
from tests.integration.stack import Stack, grpc_server, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.cards import INSTANCE_KIND, ModelCard, WorkerInstance
from wire.frames import FRAMES_HEADER, FrameWriter
from wire.pool import KSERVE, rpc_types
from wire.token_contract import is_cancel, request_slot
from wire.tokens import TokenDelta
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

WAIT_S = 10.0
USER = {"role": "user", "content": "Hello"}


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=SimConfig(timing=SimTiming(speedup=0))) as running:
        yield running


def ask(request_id: str = "", model: str = "sim", **inputs: str) -> Any:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    request.parameters["max_tokens"].int64_param = 2
    for name, text in inputs.items():
        value = text.encode()
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    return request


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def chat(**changes: Any) -> str:
    return json.dumps([{**USER, **changes}])


def tool_call(arguments: str) -> str:
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    return chat(role="assistant", tool_calls=calls)


def is_over(answer: Any) -> bool:
    response = answer.infer_response
    return bool(answer.error_message) or response.parameters["triton_final_response"].bool_param


async def ends(channel: RpcChannel, *requests: Any) -> dict[str, str]:
    """The error text of each request's end on one stream, "" for a good one."""
    found: dict[str, str] = {}
    async with (
        asyncio.timeout(WAIT_S),
        channel.stream(KSERVE, "ModelStreamInfer") as stream,
    ):
        for request in requests:
            stream.send(request)
        stream.half_close()
        async for answer in stream:
            if is_over(answer):
                assert answer.infer_response.id not in found
                found[answer.infer_response.id] = answer.error_message
    return found


DEEP_CHAT = f'[{{"role": "user", "content": "Hello", "extra": {nested(400)}}}]'
DEEP_VALUES = json.dumps({"messages": [USER]})[:-1] + (
    f', "chat_template_kwargs": {{"extra": {nested(400)}}}}}'
)
DEEP_SCHEMA = f'{{"structured_outputs": {{"json": {{"enum": {nested(400)}}}}}}}'


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"messages": tool_call(nested(3000))}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": tool_call(nested(400))}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": DEEP_CHAT}, "messages"),
        ({"messages": DEEP_VALUES}, "chat_template_kwargs"),
        ({"text_input": "Hi", "sampling_parameters": DEEP_SCHEMA}, "structured_outputs"),
    ],
    ids=["arguments", "shallower arguments", "messages", "template values", "schema"],
)
async def test_json_that_nests_too_deep_costs_its_own_request_only(
    stack: Stack, channel: RpcChannel, inputs: dict[str, str], named: str
) -> None:
    found = await ends(channel, ask("deep", **inputs), ask("good", text_input="Hi"))
    assert found["good"] == ""
    assert found["deep"].startswith(named)
    with pytest.raises(ServingError) as caught:
        await channel.unary(KSERVE, "ModelInfer", ask(**inputs), timeout_s=WAIT_S)
    assert caught.value.param == named
    await eventually(lambda: stack.door.in_flight == 0)


@pytest.mark.parametrize("length", [2000, 20_000], ids=["short", "encoded in a thread"])
async def test_a_prompt_without_room_is_named_as_the_client_sent_it(
    channel: RpcChannel, stack: Stack, length: int
) -> None:
    text = "\N{SNOWMAN} " * (stack.workers[0].card.context_length + length)
    with pytest.raises(ServingError) as caught:
        await channel.unary(KSERVE, "ModelInfer", ask(text_input=text), timeout_s=WAIT_S)
    assert caught.value.param == "text_input"
    found = await ends(channel, ask("long", text_input=text))
    assert found["long"].startswith("text_input: ")


async def test_ids_without_room_are_named_as_ids(channel: RpcChannel, stack: Stack) -> None:
    request = ask()
    context = stack.workers[0].card.context_length
    request.inputs.add(name="input_ids", datatype="INT32", shape=[context])
    request.raw_input_contents.append(b"\5\0\0\0" * context)
    with pytest.raises(ServingError) as caught:
        await channel.unary(KSERVE, "ModelInfer", request, timeout_s=WAIT_S)
    assert caught.value.param == "input_ids"


class WrongChoice:
    """A worker's stream that answers every request with a choice nobody asked for."""

    def __init__(self, call: Call) -> None:
        self._call = call
        call.set_initial_metadata({FRAMES_HEADER: "1"})

    def on_message(self, message: Any) -> None:
        slot = request_slot(message)
        if slot is not None and not is_cancel(message):
            frame = FrameWriter()
            frame.add(slot, TokenDelta(index=9, token_ids=[5]))
            self._call.send(frame.take("sim"))

    def on_half_close(self) -> None:
        self._call.finish()

    def on_writable(self) -> None:
        """Nothing is held back."""

    def on_cancel(self) -> None:
        """Nothing to release."""


async def test_a_worker_that_answers_wrongly_does_not_end_the_front_door(
    model_folder: Path,
) -> None:
    discovery = MemoryDiscovery()
    worker = grpc_server(Service(name=KSERVE, streams={"ModelStreamInfer": WrongChoice}))
    address = await worker.start()
    card = ModelCard(
        name="sim", path=str(model_folder), context_length=100, vocab_size=100, block_size=16
    )
    instance = WorkerInstance(instance_id="w", address=address, card=card, engine="sim")
    record = Record(kind=INSTANCE_KIND, id="w", value=msgspec.json.encode(instance))
    await discovery.register(record)
    door = FrontDoor(FrontDoorConfig(), discovery)
    front = grpc_server(*door.services)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(door.run())
        channel = RpcChannel(await front.start(), rpc_types=rpc_types)
        await eventually(door.is_ready)
        for _ in range(2):
            found = await ends(channel, ask("a", text_input="Hi"), ask("b", text_input="Hi"))
            assert set(found) == {"a", "b"}
            assert all("could not be read" in error for error in found.values())
        assert not running.done()
        await channel.close()
        await front.stop(0.0)
        running.cancel()
    await worker.stop(0.0)
    await discovery.close()
