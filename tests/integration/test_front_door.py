"""The KServe text service over real gRPC with simulated engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from prometheus_client import REGISTRY

from runtime.discovery import Record
from runtime.errors import (
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    ServingError,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from tests.integration.kserve_client import (
    WAIT_S,
    ask,
    ids_by_request,
    ids_of,
    infer,
    is_final,
    open_stream,
    read,
    text_of,
)
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.cards import INSTANCE_KIND, WorkerInstance
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
SLOW = SimConfig(timing=SimTiming(speedup=1))


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=FAST) as running:
        yield running


async def test_a_stream_joins_to_the_unary_answer_and_carries_usage(channel: RpcChannel) -> None:
    whole = await infer(channel, ask("u", stream=False))
    async with open_stream(channel) as stream:
        stream.send(ask("s"))
        answers = [answer.infer_response for answer in await read(stream)]
    prompt, answer = text_of(whole)[:11], text_of(whole)[11:]
    assert prompt == "Hello there"
    assert "".join(map(text_of, answers)) == answer
    assert [i for part in answers for i in ids_of(part)] == ids_of(whole)
    assert {part.id for part in answers} == {"s"}
    assert [is_final(part) for part in answers] == [False] * (len(answers) - 1) + [True]
    usage = answers[-1].parameters
    assert usage["completion_tokens"].int64_param == 8
    assert usage["prompt_tokens"].int64_param == 2


async def test_every_request_of_a_stream_is_answered_under_its_own_id(channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        for number in range(50):
            stream.send(ask(str(number), seed=number, temperature=1))
        stream.half_close()
        answers = [answer.infer_response async for answer in stream]
    ended = [answer.id for answer in answers if is_final(answer)]
    assert sorted(ended) == sorted(map(str, range(50)))
    assert all(sum(len(ids_of(a)) for a in answers if a.id == i) == 8 for i in ended)


async def test_an_empty_stream_ends_well(channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        stream.half_close()
        assert [answer async for answer in stream] == []


def ask_chat(request_id: str, text: str, *, stream: bool = True, **parameters: Any) -> Any:
    request = ask(request_id, stream=stream, **parameters)
    request.inputs[0].name = "messages"
    request.raw_input_contents[0] = len(text).to_bytes(4, "little") + text.encode()
    return request


def conversation(content: Any = "Hi", *, gap: int = 0) -> str:
    """Three messages; with a gap of 100,000 so long that they are read by parts."""
    messages = [json.dumps({"role": "user", "content": it}) for it in ("Hi", content, "Hi")]
    return f"[{(',' + ' ' * gap).join(messages)}]"


LONG = 100_000


async def test_a_long_conversation_is_answered_as_any_other(channel: RpcChannel) -> None:
    expected = ids_of(await infer(channel, ask_chat("short", conversation(), stream=False)))
    long = conversation(gap=LONG)
    assert ids_of(await infer(channel, ask_chat("unary", long, stream=False))) == expected
    async with open_stream(channel) as stream:
        for name in ("a", "b"):
            stream.send(ask_chat(name, long))
        stream.half_close()
        answers = [answer async for answer in stream]
    assert ids_by_request(answers) == {"a": expected, "b": expected}


async def test_long_conversations_that_are_refused_are_one_error_each_and_the_stream_ends(
    channel: RpcChannel,
) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    async with open_stream(channel) as stream:
        stream.send(ask_chat("deep", conversation(deep, gap=LONG)))
        stream.send(ask_chat("broken", conversation(gap=LONG)[:-1]))
        stream.send(ask_chat("good", conversation(gap=LONG)))
        stream.half_close()
        answers = [answer async for answer in stream]
    errors = {it.infer_response.id: it.error_message for it in answers if it.error_message}
    assert errors.keys() == {"deep", "broken"}
    assert "messages: nested more than" in errors["deep"]
    assert "messages: not valid JSON" in errors["broken"]
    assert sum(is_final(it.infer_response) for it in answers if not it.error_message) == 1


async def test_a_stream_cancelled_while_it_reads_long_conversations_begins_none(
    model_folder: Path,
) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            for place in range(50):
                stream.send(ask_chat(str(place), conversation(gap=LONG), max_tokens=4000))
            await eventually(lambda: stack.engine_load > 0)
        await eventually(lambda: stack.engine_load == 0 and stack.door.in_flight == 0)
        assert len(ids_of(await infer(channel, ask(stream=False, max_tokens=4)))) == 4
        assert stack.engine_load == 0
        await channel.close()


async def test_an_error_is_in_band_and_the_stream_lives_on(channel: RpcChannel) -> None:
    async with open_stream(channel) as stream:
        stream.send(ask("bad", temperature=9))
        stream.send(ask("worse", model="nobody"))
        stream.send(ask("good"))
        answers = await read(stream, finals=3)
    errors = {a.infer_response.id: a.error_message for a in answers if a.error_message}
    assert errors.keys() == {"bad", "worse"}
    assert "temperature" in errors["bad"]
    assert "nobody" in errors["worse"]
    assert answers[-1].infer_response.id == "good"


async def test_a_client_may_ask_for_the_error_as_the_status_of_the_stream(
    channel: RpcChannel,
) -> None:
    async with open_stream(channel, triton_grpc_error="true") as stream:
        stream.send(ask("bad", temperature=9))
        with pytest.raises(InvalidRequest, match="temperature"):
            await read(stream)


@pytest.mark.parametrize("version", ["2", "x"])
async def test_an_unknown_version_is_not_found(channel: RpcChannel, version: str) -> None:
    request = ask(stream=False)
    request.model_version = version
    with pytest.raises(ModelNotFound, match=version):
        await infer(channel, request)


async def test_cancelling_a_stream_frees_the_engine(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            for name in ("a", "b"):
                stream.send(ask(name, max_tokens=4000))
            await anext(aiter(stream))
            await eventually(lambda: stack.engine_load == 2)
        await eventually(lambda: stack.engine_load == 0)
        assert stack.door.in_flight == 0
        await channel.close()


async def test_a_cancelled_unary_call_frees_the_engine(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(infer(channel, ask(stream=False, max_tokens=4000)))
            await eventually(lambda: stack.engine_load == 1)
            call.cancel()
        await eventually(lambda: stack.engine_load == 0)
        await channel.close()


async def test_a_deadline_ends_the_request_and_frees_the_engine(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        request = ask("late", max_tokens=4000)
        request.parameters["timeout"].int64_param = 100_000  # µs
        async with open_stream(channel) as stream:
            stream.send(request)
            answers = await read(stream)
        assert "deadline" in answers[-1].error_message
        await eventually(lambda: stack.engine_load == 0)
        await channel.close()


async def test_a_dead_worker_fails_each_of_its_requests_once(model_folder: Path) -> None:
    async with running_stack(model_folder, workers=2, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            for number in range(6):
                stream.send(ask(str(number), max_tokens=50))
            answers: list[Any] = []
            while len({answer.infer_response.id for answer in answers}) < 6:
                answers.append(await anext(stream))
            stack.workers[0].engine.die("it burned")
            answers += await read(stream, finals=6)
        failed = [a.infer_response.id for a in answers if a.error_message]
        ended = [
            a.infer_response.id
            for a in answers
            if not a.error_message and is_final(a.infer_response)
        ]
        assert len(failed) == 3
        assert sorted(failed + ended) == [str(number) for number in range(6)]
        await channel.close()


async def test_a_worker_lost_before_the_first_token_is_replaced_by_another(
    model_folder: Path,
) -> None:
    crawling = SimConfig(timing=SimTiming(speedup=1, step_ms=400))
    async with running_stack(model_folder, workers=2, sim=crawling) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            for number in range(4):
                stream.send(ask(str(number), max_tokens=2))
            await eventually(lambda: stack.engine_load == 4)
            stack.workers[0].engine.die("it burned")
            answers = await read(stream, finals=4)
        assert [answer.error_message for answer in answers if answer.error_message] == []
        assert {len(ids) for ids in ids_by_request(answers).values()} == {2}
        await channel.close()


async def test_a_withdrawn_worker_finishes_its_requests_and_gets_no_new_ones(
    model_folder: Path,
) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            stream.send(ask("old", max_tokens=40))
            await eventually(lambda: stack.engine_load == 1)
            lease = stack.workers[0].lease
            assert lease is not None
            await lease.withdraw()
            await eventually(lambda: not stack.door.is_ready())
            stream.send(ask("new"))
            answers = await read(stream, finals=2)
        errors = {a.infer_response.id: a.error_message for a in answers if a.error_message}
        assert errors.keys() == {"new"}
        assert "no ready worker" in errors["new"]
        assert sum(len(ids_of(a.infer_response)) for a in answers if not a.error_message) == 40
        await channel.close()


async def test_a_prompt_that_leaves_no_room_is_refused_before_any_worker_sees_it(
    channel: RpcChannel, stack: Stack
) -> None:
    request = ask(stream=False)
    del request.inputs[0], request.raw_input_contents[0]
    context = stack.workers[0].card.context_length
    request.inputs.add(name="input_ids", datatype="INT32", shape=[context])
    request.raw_input_contents.append(b"\5\0\0\0" * context)
    with pytest.raises(ServingError, match=f"context is {context} tokens"):
        await infer(channel, request)


async def test_a_slow_reader_gets_fewer_larger_deltas_and_loses_nothing(stack: Stack) -> None:
    # Windows that do not grow: HTTP/2 flow control holds back what is not read.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with grpc.aio.insecure_channel(stack.grpc, options=options) as channel:
        call: Any = channel.stream_stream(f"/{KSERVE}/ModelStreamInfer")()
        for number in range(20):
            await call.write(ask(str(number), max_tokens=1000).SerializeToString())
        await call.done_writing()
        await eventually(lambda: stack.engine_load > 0)
        # The engine is done while nobody reads.
        await eventually(lambda: stack.engine_load == 0)
        read = pb.ModelStreamInferResponse.FromString
        answers = [read(data).infer_response async for data in call]
    assert sum(len(ids_of(answer)) for answer in answers) == 20 * 1000
    assert len(answers) < 20 * 1000 / 2


async def test_draining_refuses_new_requests_and_finishes_running_ones(
    model_folder: Path,
) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            stream.send(ask("old", max_tokens=40))
            await eventually(lambda: stack.engine_load == 1)
            stack.door.drain()
            stream.send(ask("new"))
            answers = await read(stream, finals=2)
        assert [a.infer_response.id for a in answers if a.error_message] == ["new"]
        async with asyncio.timeout(WAIT_S):
            await stack.door.wait_idle()
        await channel.close()


async def test_without_a_worker_the_model_is_known_and_not_ready(model_folder: Path) -> None:
    async with running_stack(model_folder) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        await stack.workers[0].server.stop(0.0)
        await eventually(lambda: not stack.door.is_ready())
        ready = await channel.unary(
            KSERVE, "ModelReady", pb.ModelReadyRequest(name="sim"), timeout_s=WAIT_S
        )
        assert not ready.ready
        with pytest.raises(ServingError) as caught:
            await infer(channel, ask(stream=False))
        assert caught.value.reason == "model_not_ready"
        assert not isinstance(caught.value, WorkerLost)
        await channel.close()


async def test_an_expected_model_is_starting_rather_than_unknown(model_folder: Path) -> None:
    config = FrontDoorConfig(expected_models=("later", "sim"))
    async with running_stack(model_folder, config=config) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        with pytest.raises(ModelNotReady, match="'later' is starting"):
            await infer(channel, ask(stream=False, model="later"))
        # Not absent: an alert on a model without a worker must see it.
        assert REGISTRY.get_sample_value("penstock_workers_connected", {"model": "later"}) == 0
        call = channel.unary(KSERVE, "RepositoryIndex", pb.RepositoryIndexRequest(), timeout_s=9)
        states = {model.name: model.state for model in (await call).models}
        assert states == {"sim": "READY", "later": "LOADING"}
        call = channel.unary(
            KSERVE, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True), timeout_s=9
        )
        assert [model.name for model in (await call).models] == ["sim"]
        await channel.close()


async def test_a_worker_whose_model_cannot_be_read_does_not_harm_the_others(
    model_folder: Path, tmp_path: Path
) -> None:
    async with running_stack(model_folder) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        broken = msgspec.structs.replace(stack.workers[0].card, name="broken", path=str(tmp_path))
        bad = WorkerInstance(instance_id="bad", address="127.0.0.1:1", card=broken, engine="sim")
        good = msgspec.structs.replace(bad, instance_id="good", card=stack.workers[0].card)
        for instance in (bad, good):
            value = msgspec.json.encode(instance)
            record = Record(kind=INSTANCE_KIND, id=instance.instance_id, value=value)
            await stack.discovery.register(record)
        await eventually(lambda: "good" in stack.door._fleet._members)
        assert stack.door.model_names() == ["sim"]
        assert ids_of(await infer(channel, ask(stream=False)))
        await channel.close()
