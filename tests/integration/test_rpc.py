"""Single rpcs through runtime's gRPC server and client, over real sockets."""

import asyncio
import socket
from typing import Any

import grpc
import pytest

from runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unsupported,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from tests.integration.rpc_probe import NAME, Probe, make_server, ready, running
from tests.transports import make_channel
from tests.waiting import eventually
from wire.inference_pb2 import ModelInferRequest, ServerLiveRequest, ServerLiveResponse
from wire.pool import rpc_types

pytestmark = pytest.mark.usefixtures("each_transport")


async def test_a_unary_call_carries_messages_metadata_and_deadline():
    async with running() as (probe, _, channel):
        answer = await channel.unary(
            NAME, "ServerLive", ServerLiveRequest(), timeout_s=30, metadata={"x-request-id": "r1"}
        )
        assert answer == ServerLiveResponse(live=False)
        await channel.unary(NAME, "ServerLive", ServerLiveRequest(), timeout_s=None)
    with_deadline, without = probe.infos
    assert with_deadline.metadata["x-request-id"] == "r1"
    assert with_deadline.method == "ServerLive"
    assert with_deadline.peer
    now = asyncio.get_running_loop().time()
    assert with_deadline.deadline_s is not None
    assert now < with_deadline.deadline_s < now + 31
    assert without.deadline_s is None


async def test_our_errors_keep_their_class_message_and_field():
    async with running() as (_, _, channel):
        with pytest.raises(ModelNotFound) as caught:
            await ready(channel, "missing")
        assert caught.value.message == "no model 'missing'? ü"
        assert caught.value.param == "n\\xe4me?"
        with pytest.raises(Overloaded, match="full"):
            await ready(channel, "group")


async def test_other_exceptions_become_a_fixed_text_and_a_log_entry(caplog):
    async with running() as (_, _, channel):
        with pytest.raises(InternalError) as caught:
            await ready(channel, "defect")
        assert "secret" not in caught.value.message
        assert any("secret" in str(r.exc_info) for r in caplog.records if r.exc_info)
        with pytest.raises(InternalError):
            await ready(channel, "stray-cancel")


async def test_a_very_long_message_still_arrives_as_its_own_error():
    async with running() as (_, _, channel):
        with pytest.raises(InvalidRequest) as caught:
            await ready(channel, "long")
        assert caught.value.message.startswith("üüü")


async def test_bytes_that_are_no_message_are_an_invalid_argument_in_both_kinds_of_rpc():
    async with running() as (_, _, channel), grpc.aio.insecure_channel(channel.address) as raw:
        unary: Any = raw.unary_unary(f"/{NAME}/ModelReady")
        stream: Any = raw.stream_stream(f"/{NAME}/ModelStreamInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        call = stream(iter([b"\xff\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_methods_that_are_not_served_are_unimplemented():
    async with running() as (_, _, channel):
        with pytest.raises(Unsupported):
            await channel.unary(NAME, "ServerReady", ServerLiveRequest(), timeout_s=5)


async def test_a_refused_connection_is_worker_lost_at_once():
    server = make_server(Probe())
    address = await server.start()
    await server.stop(0)
    channel = make_channel(address, rpc_types=rpc_types)
    with pytest.raises(WorkerLost):
        await ready(channel, "x")
    await channel.close()


async def test_a_port_in_use_is_a_configuration_error():
    async with running() as (_, _, channel):
        port = int(channel.address.rpartition(":")[2])
        with pytest.raises(InvalidConfig, match=str(port)):
            await make_server(Probe(), port=port).start()


async def test_metadata_over_the_limit_is_refused():
    async with running(max_metadata_bytes=2000) as (_, _, channel):
        with pytest.raises(Overloaded):
            await channel.unary(
                NAME, "ServerLive", ServerLiveRequest(), timeout_s=5, metadata={"a": "b" * 3000}
            )


async def test_a_stream_echoes_in_order_and_ends_with_its_half_close():
    async with running() as (_, server, channel):
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            for i in range(100):
                stream.send(ModelInferRequest(id=str(i)))
            stream.half_close()
            got = [message.error_message async for message in stream]
        assert got == [str(i) for i in range(100)]
        await eventually(lambda: server.in_flight == 0)
        assert server.in_flight == 0


async def test_initial_metadata_arrives_before_any_message():
    async with running() as (_, _, channel), channel.stream(NAME, "ModelStreamInfer") as stream:
        stream.send(ModelInferRequest(id="headers"))
        assert (await stream.initial_metadata())["penstock-frames"] == "1"


@pytest.mark.parametrize(
    ("request_id", "error"),
    [("bad", InvalidRequest), ("defect", InternalError)],
)
async def test_an_exception_of_on_message_ends_the_call_and_releases_the_handler(request_id, error):
    async with running() as (probe, _, channel):
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id=request_id))
            with pytest.raises(error):
                await anext(stream)
            with pytest.raises(error):
                await stream.initial_metadata()
        await probe.cancelled.wait()
        assert probe.cancels == 1


async def test_fail_comes_after_what_was_sent_and_calls_no_cancel():
    async with running() as (probe, server, channel):
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id="fail"))
            assert (await anext(stream)).error_message == "last words"
            with pytest.raises(ModelNotFound, match="gone"):
                await anext(stream)
        await eventually(lambda: server.in_flight == 0)
        assert probe.cancels == 0


async def test_a_slow_reader_pauses_the_handler_and_loses_nothing():
    async with running() as (probe, _, channel):
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id="flood"))
            await probe.paused.wait()
            assert probe.produced < probe.flood_size
            got = [len(message.error_message) async for message in stream]
        assert got == [16384] * probe.flood_size
        assert probe.resumed > 0


@pytest.mark.parametrize("way", ["leave", "cancel", "break", "close"])
async def test_a_client_that_goes_away_reaches_on_cancel_once(way):
    async with running() as (probe, server, channel):
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id="hold"))
            async for _ in stream:
                if way == "cancel":
                    stream.cancel()
                    with pytest.raises(Cancelled):
                        await anext(stream)
                elif way == "close":
                    await channel.close()
                break
        await probe.cancelled.wait()
        await eventually(lambda: server.in_flight == 0)
        assert probe.cancels == 1


async def test_a_cancelled_consumer_cancels_the_call():
    async with running() as (probe, _, channel), channel.stream(NAME, "ModelStreamInfer") as stream:
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(stream)
        with pytest.raises(Cancelled):
            await anext(stream)
        await probe.cancelled.wait()


async def test_a_consumer_that_is_cancelled_before_there_is_a_connection_ends_at_once():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        channel = make_channel(f"127.0.0.1:{silent.getsockname()[1]}", rpc_types=rpc_types)
        began = asyncio.Event()

        async def consume() -> None:
            async with channel.stream(NAME, "ModelStreamInfer") as stream:
                stream.send(ModelInferRequest())
                began.set()
                async for _ in stream:
                    pass

        consumer = asyncio.ensure_future(consume())
        await began.wait()
        await asyncio.sleep(0)  # the writer's first step
        consumer.cancel()
        done, _ = await asyncio.wait([consumer], timeout=10)
        await channel.close()
    assert done
    assert consumer.cancelled()


async def test_deadlines_hold_on_both_sides():
    async with running() as (probe, _, channel):
        with pytest.raises(DeadlineExceeded):
            await ready(channel, "wait", timeout_s=0.05)
        async with channel.stream(NAME, "ModelStreamInfer", timeout_s=0.2) as stream:
            stream.send(ModelInferRequest(id="hold"))
            await anext(stream)
            with pytest.raises(DeadlineExceeded):
                await anext(stream)
        await probe.cancelled.wait()
    assert probe.left


async def expire(channel: RpcChannel, attempt: int) -> None:
    timeout_s = 0.0005 * (attempt % 60)
    async with channel.stream(NAME, "ModelStreamInfer", timeout_s=timeout_s) as stream:
        for _ in range(attempt % 5):
            stream.send(ModelInferRequest(id="hold"))
        if attempt % 2 and attempt % 5:
            stream.half_close()
        with pytest.raises(DeadlineExceeded):
            _ = [message async for message in stream]


async def test_a_deadline_that_passes_while_a_client_sends_is_a_deadline():
    async with running() as (_, _, channel), asyncio.TaskGroup() as group:
        for attempt in range(600):
            group.create_task(expire(channel, attempt))


async def test_a_stream_can_be_left_before_the_server_has_answered_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        channel = make_channel(f"127.0.0.1:{silent.getsockname()[1]}", rpc_types=rpc_types)
        async with asyncio.timeout(10), channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id="never"))
            connection, _ = await asyncio.to_thread(silent.accept)
        connection.close()
        await channel.close()
