"""A small service of every kind of behaviour, and a server and client around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.errors import InvalidRequest, ModelNotFound, Overloaded, ServingError
from runtime.grpc_client import RpcChannel
from runtime.grpc_options import GrpcOptions
from runtime.rpc import Call, CallInfo, Service
from runtime.rpc_server import RpcServer
from runtime.tls import ServerIdentity
from tests.transports import make_channel, transport
from transport.choice import make_server as make_rpc_server
from wire.inference_pb2 import (
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStreamInferResponse,
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


def make_server(
    probe: Probe, port: int = 0, *, tls: ServerIdentity | None = None, **options
) -> RpcServer:
    return make_rpc_server(
        services=[probe.service()],
        rpc_types=rpc_types,
        pool=POOL,
        host="127.0.0.1",
        port=port,
        options=GrpcOptions(**{"transport": transport(), **options}),
        tls=tls,
    )


@asynccontextmanager
async def running(**options) -> AsyncIterator[tuple[Probe, RpcServer, RpcChannel]]:
    probe = Probe()
    server = make_server(probe, **options)
    address = await server.start()
    channel = make_channel(address, rpc_types=rpc_types)
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
