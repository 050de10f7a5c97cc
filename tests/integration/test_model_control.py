"""Load, unload and the repository's index: tritonclient's flavour, KServe's, and under load."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from runtime.errors import (
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    ServingError,
    Unsupported,
)
from runtime.grpc_client import RpcChannel
from server.config import EXPLICIT, FrontDoorConfig
from tests.integration.kserve_client import (
    WAIT_S,
    ask,
    ids_by_request,
    ids_of,
    infer,
    is_final,
    open_stream,
    read,
)
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
SLOW = SimConfig(timing=SimTiming(speedup=1, step_ms=10))
CONTROLLED = FrontDoorConfig(model_control=EXPLICIT)


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, workers=2, sim=SLOW, config=CONTROLLED) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(stack.grpc) as opened:
        yield opened


async def call(channel: RpcChannel, method: str, message: Any) -> Any:
    return await channel.unary(KSERVE, method, message, timeout_s=WAIT_S)


def unload(name: str = "sim", **parameters: bool) -> Any:
    message = pb.RepositoryModelUnloadRequest(model_name=name)
    for key, value in parameters.items():
        message.parameters[key].bool_param = value
    return message


async def state(channel: RpcChannel) -> tuple[str, str]:
    (model,) = (await call(channel, "RepositoryIndex", pb.RepositoryIndexRequest())).models
    return model.state, model.reason


async def test_tritonclient_unloads_and_loads_a_model(client: triton.InferenceServerClient) -> None:
    await client.unload_model("sim", unload_dependents=True)
    assert not await client.is_model_ready("sim")
    assert not await client.is_server_ready()
    (model,) = (await client.get_model_repository_index()).models
    assert (model.name, model.version, model.state, model.reason) == (
        "sim", "1", "UNAVAILABLE", "unloaded",
    )  # fmt: skip
    await client.load_model("sim")
    assert await client.is_model_ready("sim")
    (model,) = (await client.get_model_repository_index(as_json=True))["models"]
    assert model == {"name": "sim", "version": "1", "state": "READY"}


async def test_kserve_names_the_model_in_field_1_and_is_told_what_happened(
    stack: Stack, channel: RpcChannel
) -> None:
    """As bytes: in KServe's messages field 1 is model_name, and field 2 of the answer a bool."""
    async with grpc.aio.insecure_channel(stack.grpc) as raw:
        for method in ("RepositoryModelUnload", "RepositoryModelLoad"):
            send: Any = raw.unary_unary(f"/{KSERVE}/{method}")
            assert await send(b"\x0a\x03sim", timeout=WAIT_S) == b"\x0a\x03sim\x10\x01"
    assert ids_of(await infer(channel, ask(stream=False)))


async def test_an_unloaded_model_refuses_requests_and_is_known(channel: RpcChannel) -> None:
    await call(channel, "RepositoryModelUnload", unload())
    with pytest.raises(ModelNotReady, match="unloaded"):
        await infer(channel, ask(stream=False))
    assert (await call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="sim"))).versions


async def test_loading_what_is_loaded_and_unloading_what_is_unloaded_is_fine(
    channel: RpcChannel,
) -> None:
    load = pb.RepositoryModelLoadRequest(model_name="sim")
    assert (await call(channel, "RepositoryModelLoad", load)).isLoaded
    for _ in range(2):
        assert (await call(channel, "RepositoryModelUnload", unload())).isUnloaded


async def test_an_unload_loses_no_running_stream(stack: Stack, channel: RpcChannel) -> None:
    async with open_stream(channel) as stream, asyncio.TaskGroup() as tasks:
        for number in range(12):
            stream.send(ask(str(number), max_tokens=60, ignore_eos=True))
        await eventually(lambda: stack.engine_load == 12)
        unloading = tasks.create_task(call(channel, "RepositoryModelUnload", unload()))
        await eventually(lambda: not stack.door.is_ready())
        assert await state(channel) == ("UNLOADING", "being unloaded")
        with pytest.raises(ServingError, match="unloaded"):
            await infer(channel, ask(stream=False))
        assert not unloading.done()
        answers = await read(stream, finals=12)
        assert (await unloading).isUnloaded
    assert [it.error_message for it in answers if it.error_message] == []
    assert {len(ids) for ids in ids_by_request(answers).values()} == {60}
    assert stack.engine_load == 0
    assert await state(channel) == ("UNAVAILABLE", "unloaded")


async def test_under_load_every_request_is_answered_in_full_or_told_to_come_back(
    stack: Stack, channel: RpcChannel
) -> None:
    load = pb.RepositoryModelLoadRequest(model_name="sim")
    answers: list[Any] = []

    async def ask_on_and_on(stream: Any, name: str) -> None:
        for number in range(25):
            stream.send(ask(f"{name}-{number}", max_tokens=4, ignore_eos=True))
            answers.extend(await read(stream))

    async with AsyncExitStack() as streams, asyncio.TaskGroup() as tasks:
        for name in "abcdefgh":
            stream = await streams.enter_async_context(open_stream(channel))
            tasks.create_task(ask_on_and_on(stream, name))
        for _ in range(2):
            await eventually(lambda: stack.engine_load > 4)
            await call(channel, "RepositoryModelUnload", unload())
            await call(channel, "RepositoryModelLoad", load)
    errors = {it.infer_response.id: it.error_message for it in answers if it.error_message}
    tokens = ids_by_request([it for it in answers if not it.error_message])
    complete = {request_id for request_id, ids in tokens.items() if len(ids) == 4}
    assert len(errors) + len(complete) == 200
    assert not errors.keys() & complete
    assert all("load" in text or "no ready worker" in text for text in errors.values()), errors
    assert len(complete) > 50


async def test_an_unload_whose_caller_goes_away_goes_on(stack: Stack, channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        stream.send(ask("running", max_tokens=60, ignore_eos=True))
        await eventually(lambda: stack.engine_load == 1)
        async with asyncio.TaskGroup() as tasks:
            unloading = tasks.create_task(call(channel, "RepositoryModelUnload", unload()))
            await eventually(lambda: not stack.door.is_ready())
            unloading.cancel()
        answers = await read(stream)
    assert is_final(answers[-1].infer_response)
    await eventually(lambda: all(it.control.state == "unloaded" for it in stack.workers))


async def test_a_load_ends_an_unload_that_waits_and_running_streams_go_on(
    stack: Stack, channel: RpcChannel
) -> None:
    async with open_stream(channel) as stream, asyncio.TaskGroup() as tasks:
        stream.send(ask("long", max_tokens=150, ignore_eos=True))
        await eventually(lambda: stack.engine_load == 1)
        unloading = tasks.create_task(call(channel, "RepositoryModelUnload", unload()))
        await eventually(lambda: not stack.door.is_ready())
        load = pb.RepositoryModelLoadRequest(model_name="sim")
        assert (await call(channel, "RepositoryModelLoad", load)).isLoaded
        assert not (await unloading).isUnloaded
        assert ids_of(await infer(channel, ask(stream=False)))
        answers = await read(stream)
    assert sum(len(ids_of(answer.infer_response)) for answer in answers) == 150


async def test_calls_at_once_take_turns(stack: Stack, channel: RpcChannel) -> None:
    load = pb.RepositoryModelLoadRequest(model_name="sim")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(call(channel, "RepositoryModelUnload", unload()))
            tasks.create_task(call(channel, "RepositoryModelLoad", load))
    states = {worker.control.state for worker in stack.workers}
    assert len(states) == 1
    assert stack.door.is_ready() == (states == {"ready"})


async def test_discovery_may_tell_of_a_state_before_the_worker_answers(
    stack: Stack, channel: RpcChannel
) -> None:
    await call(channel, "RepositoryModelUnload", unload())
    for worker in stack.workers:
        worker.before_answer = lambda: eventually(stack.door.is_ready)
    load = pb.RepositoryModelLoadRequest(model_name="sim")
    assert (await call(channel, "RepositoryModelLoad", load)).isLoaded


async def test_a_worker_that_dies_is_not_waited_for(stack: Stack, channel: RpcChannel) -> None:
    async with open_stream(channel) as stream, asyncio.TaskGroup() as tasks:
        for number in range(2):
            stream.send(ask(str(number), max_tokens=4000, ignore_eos=True))
        await eventually(lambda: stack.engine_load == 2)
        unloading = tasks.create_task(call(channel, "RepositoryModelUnload", unload()))
        await eventually(lambda: not stack.door.is_ready())
        for worker in stack.workers:
            await worker.server.stop(0.0)
        assert (await unloading).isUnloaded


async def test_no_worker_that_answers_is_an_error(stack: Stack, channel: RpcChannel) -> None:
    for worker in stack.workers:
        await worker.server.stop(0.0)
    with pytest.raises(ModelNotReady):
        await call(channel, "RepositoryModelUnload", unload())


async def test_a_worker_that_comes_while_the_model_is_unloaded_serves_it(
    stack: Stack, channel: RpcChannel
) -> None:
    await call(channel, "RepositoryModelUnload", unload())
    one = stack.workers[0]
    assert one.lease is not None
    await one.lease.withdraw()
    one.control.load()
    await one.register(stack.discovery)
    await eventually(stack.door.is_ready)
    assert ids_of(await infer(channel, ask(stream=False)))


async def test_an_unloaded_model_is_not_forgotten(model_folder: Path) -> None:
    config = FrontDoorConfig(model_control=EXPLICIT, model_linger_s=0.05)
    async with running_stack(model_folder, sim=FAST, config=config) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        await call(channel, "RepositoryModelUnload", unload())
        expiries = stack.door._fleet._expiries
        assert not expiries
        lease = stack.workers[0].lease
        assert lease is not None
        await lease.withdraw()
        await eventually(lambda: stack.door.model_names() == [])
        await channel.close()


@pytest.mark.parametrize("name", ["nobody", ""])
@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_an_unknown_model_is_not_found(channel: RpcChannel, method: str, name: str) -> None:
    kind = rpc_types(KSERVE)[method][0]
    with pytest.raises(ModelNotFound):
        await call(channel, method, kind(model_name=name))


async def test_configuration_and_files_are_refused(
    client: triton.InferenceServerClient, channel: RpcChannel
) -> None:
    for more in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.bin": b"x"}}):
        with pytest.raises(InferenceServerException, match="not offered"):
            await client.load_model("sim", **more)
    with pytest.raises(InvalidRequest, match="later"):
        await call(channel, "RepositoryModelUnload", unload(later=True))
    assert await client.is_model_ready("sim")


async def test_without_the_switch_nobody_loads_or_unloads(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=FAST) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        with pytest.raises(Unsupported, match="--model-control=explicit"):
            await call(channel, "RepositoryModelUnload", unload())
        assert stack.door.is_ready()
        await channel.close()


async def test_a_server_that_is_leaving_shows_no_model_as_ready(
    stack: Stack, channel: RpcChannel
) -> None:
    stack.door.withdraw()
    assert await state(channel) == ("UNAVAILABLE", "the server is stopping")
    index = await call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    assert not index.models
