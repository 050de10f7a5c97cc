"""What the gRPC server does beyond single rpcs: stopping, health, reflection, dead peers."""

import asyncio
import signal
import subprocess
import sys
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from runtime.errors import Code, Draining, WorkerLost
from tests.integration.rpc_probe import NAME, outcome, ready, running
from tests.transports import make_channel
from wire.inference_pb2 import ModelInferRequest
from wire.pool import rpc_types

pytestmark = pytest.mark.usefixtures("each_transport")


async def test_stop_lets_a_running_call_finish_and_refuses_new_ones():
    async with running() as (probe, server, channel), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(ready(channel, "wait", timeout_s=None))
        await probe.entered.wait()
        stopping = tasks.create_task(server.stop(10))
        other = make_channel(channel.address, rpc_types=rpc_types)
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
        assert (await waiting).code is Code.UNAVAILABLE


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


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_every_service(version: str):
    async with running() as (_, _, channel), grpc.aio.insecure_channel(channel.address) as raw:
        request = reflection_pb2.ServerReflectionRequest
        call: Any = raw.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=request.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(request(list_services=""))
        names = [s.name for s in (await call.read()).list_services_response.service]
        assert names == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            NAME,
        ]
        for name in names:
            await call.write(request(file_containing_symbol=name))
            files = (await call.read()).file_descriptor_response.file_descriptor_proto
            described = FileDescriptorProto.FromString(files[0])
            assert name in [f"{described.package}.{it.name}" for it in described.service]
            DescriptorPool().AddSerializedFile(files[0])
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
from tests.integration.rpc_probe import Probe, make_server

async def main():
    server = make_server(Probe())
    print(await server.start(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def server_process(each_transport):
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_a_frozen_server_is_noticed_in_seconds(server_process):
    address = server_process.stdout.readline().strip()
    channel = make_channel(address, rpc_types=rpc_types, keepalive_s=1)
    async with channel.stream(NAME, "ModelStreamInfer") as stream:
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        server_process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(15):
            with pytest.raises(WorkerLost):
                await anext(stream)
    await channel.close()
