"""runtime's gRPC server and client over real sockets, with small services of their own."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServingError,
    Unsupported,
    WorkerLost,
)
from runtime.grpc_client import RpcChannel
from runtime.grpc_server import GrpcOptions, GrpcServer
from runtime.rpc import Call, CallInfo, Service
from tests.waiting import eventually
from wire.inference_pb2 import (
    ModelInferRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStreamInferResponse,
    ServerLiveRequest,
    ServerLiveResponse,
)
from wire.pool import POOL, rpc_types

NAME = "inference.GRPCInferenceService"


class Echo:
    """Streams back what it gets; `steps` of "cancelled" and the like tell what happened to it."""

    def __init__(self, probe: "Probe", call: Call) -> None:
        self.probe, self.call = probe, call
        self.held = False

    def on_message(self, message) -> None:
        self.probe.messages.put_nowait(message.id)
        match message.id:
            case "headers":
                self.call.set_initial_metadata({"penstock-frames": "1"})
            case "bad":
                raise InvalidRequest("bad id", param="id")
            case "defect":
                raise KeyError("secret")
            case "fail":
                self.call.send(ModelStreamInferResponse(error_message="last words"))
                self.call.fail(ModelNotFound("gone"))
            case "flood":
                self.produce()
            case _:
                self.held = message.id == "hold"
                self.call.send(ModelStreamInferResponse(error_message=message.id))

    def produce(self) -> None:
        while self.call.writable and self.probe.produced < self.probe.flood_size:
            self.call.send(ModelStreamInferResponse(error_message="x" * 16384))
            self.probe.produced += 1
        if self.probe.produced == self.probe.flood_size:
            self.call.finish()
        else:
            self.probe.paused.set()

    def on_half_close(self) -> None:
        if not self.held:
            self.call.finish()

    def on_writable(self) -> None:
        self.probe.resumed += 1
        self.produce()

    def on_cancel(self) -> None:
        self.probe.cancels += 1
        self.probe.cancelled.set()


class Probe:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self.paused = asyncio.Event()
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.left = False
        self.cancels = self.resumed = self.produced = 0
        self.flood_size = 1000
        self.infos: list[CallInfo] = []

    async def server_live(self, request, info: CallInfo):
        self.infos.append(info)
        return ServerLiveResponse(live=False)

    async def model_ready(self, request, info: CallInfo):
        match request.name:
            case "missing":
                raise ModelNotFound("no model 'missing'\ud800 ü", param="näme\n")
            case "defect":
                raise KeyError("secret")
            case "group":
                raise ExceptionGroup("many", [ValueError("x"), Overloaded("full")])
            case "stray-cancel":
                raise asyncio.CancelledError
            case "long":
                raise InvalidRequest("ü" * 50_000, param="p" * 9000)
            case "wait":
                self.entered.set()
                try:
                    await self.release.wait()
                finally:
                    self.left = True
        return ModelReadyResponse(ready=True)

    def service(self) -> Service:
        return Service(
            name=NAME,
            unary={"ServerLive": self.server_live, "ModelReady": self.model_ready},
            streams={"ModelStreamInfer": lambda call: Echo(self, call)},
        )


def make_server(probe: Probe, port: int = 0, **options) -> GrpcServer:
    return GrpcServer(
        services=[probe.service()],
        rpc_types=rpc_types,
        pool=POOL,
        host="127.0.0.1",
        port=port,
        options=GrpcOptions(**options),
    )


@asynccontextmanager
async def running(**options) -> AsyncIterator[tuple[Probe, GrpcServer, RpcChannel]]:
    probe = Probe()
    server = make_server(probe, **options)
    address = await server.start()
    channel = RpcChannel(address, rpc_types=rpc_types)
    try:
        async with asyncio.timeout(20):
            yield probe, server, channel
    finally:
        await channel.close()
        await server.stop(0)


async def ready(channel: RpcChannel, name: str, timeout_s: float | None = 5):
    return await channel.unary(
        NAME, "ModelReady", ModelReadyRequest(name=name), timeout_s=timeout_s
    )


async def outcome(call):
    try:
        return await call
    except ServingError as error:
        return error


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
    channel = RpcChannel(address, rpc_types=rpc_types)
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


async def test_stop_lets_a_running_call_finish_and_refuses_new_ones():
    async with running() as (probe, server, channel), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(ready(channel, "wait", timeout_s=None))
        await probe.entered.wait()
        stopping = tasks.create_task(server.stop(10))
        other = RpcChannel(channel.address, rpc_types=rpc_types)
        while not isinstance(await outcome(ready(other, "x")), WorkerLost):
            pass
        await other.close()
        assert not stopping.done()
        probe.release.set()
        assert (await waiting).ready


async def test_stop_ends_what_does_not_finish_and_returns_after_its_finally():
    async with running() as (probe, server, channel), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(outcome(ready(channel, "wait", timeout_s=None)))
        await probe.entered.wait()
        async with channel.stream(NAME, "ModelStreamInfer") as stream:
            stream.send(ModelInferRequest(id="hold"))
            await anext(stream)
            await server.stop(0.05)
            assert server.in_flight == 0
            assert probe.left
            assert probe.cancels == 1
            with pytest.raises(Draining):
                await anext(stream)
        assert isinstance(await waiting, WorkerLost)


async def test_health_follows_each_service_and_unknown_names_are_not_found():
    async with running() as (_, server, channel), grpc.aio.insecure_channel(channel.address) as raw:
        stub = health_pb2_grpc.HealthStub(raw)
        check = health_pb2.HealthCheckRequest
        assert (await stub.Check(check(service=NAME))).status == 2
        server.set_serving(NAME, True)
        server.set_serving("", True)
        assert (await stub.Check(check(service=NAME))).status == 1
        assert (await stub.Check(check())).status == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(check(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watchers_see_each_change_and_the_end_at_stop():
    async with running() as (_, server, channel), grpc.aio.insecure_channel(channel.address) as raw:
        stub = health_pb2_grpc.HealthStub(raw)
        first = aiter(stub.Watch(health_pb2.HealthCheckRequest(service=NAME)))
        second = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        unknown = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="nobody")))
        assert (await anext(first)).status == 2
        assert (await second.read()).status == 2
        assert (await anext(unknown)).status == 3
        second.cancel()
        server.set_serving(NAME, True)
        assert (await anext(first)).status == 1
        await server.stop(10)
        assert [m.status async for m in first] == [2]


async def test_reflection_lists_and_describes_every_service():
    async with running() as (_, _, channel), grpc.aio.insecure_channel(channel.address) as raw:
        stub = reflection_pb2_grpc.ServerReflectionStub(raw)
        request = reflection_pb2.ServerReflectionRequest
        call = stub.ServerReflectionInfo()
        await call.write(request(list_services=""))
        names = [s.name for s in (await call.read()).list_services_response.service]
        assert names == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            NAME,
        ]
        for name in names:
            await call.write(request(file_containing_symbol=name))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.write(request(file_by_filename="inference.proto"))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.write(request(file_by_filename="nowhere.proto"))
        assert (await call.read()).error_response.error_code == 5
        await call.write(request())
        assert (await call.read()).error_response.error_code == 3
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


SERVER = """
import asyncio
from tests.integration.test_rpc import Probe, make_server
async def main():
    server = make_server(Probe())
    print(await server.start(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def server_process():
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_a_frozen_server_is_noticed_in_seconds(server_process):
    address = server_process.stdout.readline().strip()
    channel = RpcChannel(address, rpc_types=rpc_types, keepalive_s=1)
    async with channel.stream(NAME, "ModelStreamInfer") as stream:
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        server_process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(15):
            with pytest.raises(WorkerLost):
                await anext(stream)
    await channel.close()
