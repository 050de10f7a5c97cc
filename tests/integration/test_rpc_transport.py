"""The connection below the rpcs: compression, pings, limits and age."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from runtime.errors import Overloaded, WorkerLost
from runtime.grpc_client import RpcChannel
from runtime.grpc_options import COMPRESSION_LEVELS
from tests.integration.rpc_probe import NAME, Probe, outcome, ready, running
from tests.integration.tcp_relay import Relay, relaying
from tests.transports import make_channel
from tests.waiting import eventually
from wire.inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from wire.pool import rpc_types

pytestmark = pytest.mark.usefixtures("each_transport")

LONG = "x" * 100_000
PING_BYTES = 17  # RFC 9113 section 6.7: a frame header and 8 octets
ALGORITHMS = (grpc.Compression.Gzip, grpc.Compression.Deflate)


@asynccontextmanager
async def relayed(
    *, keepalive_s: float | None = None, **options: Any
) -> AsyncIterator[tuple[Probe, Relay, RpcChannel]]:
    """A server with options, a relay before it, and a channel of ours through the relay."""
    async with running(**options) as (probe, _, direct), relaying(direct.address) as relay:
        channel = make_channel(relay.address, rpc_types=rpc_types, keepalive_s=keepalive_s)
        try:
            yield probe, relay, channel
        finally:
            await channel.close()


async def echo(address: str, compression: grpc.Compression | None, text: str = LONG) -> str:
    """Send `text` on a stream of grpc's own client and return what comes back."""
    async with grpc.aio.insecure_channel(address) as channel:
        start = channel.stream_stream(
            f"/{NAME}/ModelStreamInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        call: Any = start(compression=compression)
        await call.write(ModelInferRequest(id=text))
        answer = await call.read()
        await call.done_writing()
        await call.code()
        return str(answer.error_message)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_compressed_requests_are_taken(algorithm: grpc.Compression) -> None:
    async with relayed() as (_, relay, _):
        assert await echo(relay.address, algorithm) == LONG
        assert relay.sent < 5_000
        assert relay.received > len(LONG)


@pytest.mark.parametrize("level", COMPRESSION_LEVELS)
async def test_answers_are_compressed_at_the_level_that_is_set(level: str) -> None:
    async with relayed(compression=level) as (_, relay, _):
        assert await echo(relay.address, None) == LONG
        assert relay.sent > len(LONG)
        assert (relay.received < 5_000) == (level != "none")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_compressed_message_is_measured_unpacked(algorithm: grpc.Compression) -> None:
    async with running(max_message_bytes=50_000) as (_, _, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(channel.address, algorithm)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await echo(channel.address, algorithm, "short") == "short"


async def test_a_client_may_ping_an_idle_stream_as_often_as_it_likes() -> None:
    async with (
        relayed(keepalive_s=1.0) as (_, relay, channel),
        channel.stream(NAME, "ModelStreamInfer") as stream,
    ):
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        quiet = relay.sent
        # Servers of default settings end the connection at the fifth.
        pings = 6 * PING_BYTES
        await eventually(lambda: relay.sent >= quiet + pings, limit_s=15, look_every_s=0.05)
        stream.send(ModelInferRequest(id="again"))
        assert (await anext(stream)).error_message == "again"
        assert relay.connections == 1


async def test_a_client_that_vanished_without_a_word_is_noticed() -> None:
    async with (
        relayed(keepalive_time_s=0.5, keepalive_timeout_s=0.5) as (probe, relay, channel),
        channel.stream(NAME, "ModelStreamInfer") as stream,
    ):
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        relay.frozen = True
        async with asyncio.timeout(10):
            await probe.cancelled.wait()


async def test_rpcs_beyond_a_connections_limit_wait_for_a_place() -> None:
    async with running(max_concurrent_streams=2) as (probe, server, channel):
        other = make_channel(channel.address, rpc_types=rpc_types)
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(ready(channel, "wait", timeout_s=9)) for _ in range(5)]
            await eventually(lambda: server.in_flight == 2)
            for _ in range(20):
                await ready(other, "x")
            assert server.in_flight == 2
            probe.release.set()
        assert all(call.result().ready for call in waiting)
        await other.close()


async def test_metadata_over_the_configured_limit_is_refused() -> None:
    async with running(max_metadata_bytes=2_000) as (_, _, channel):
        call = channel.unary(
            NAME, "ServerLive", ModelInferRequest(), timeout_s=5, metadata={"k": "v" * 3_000}
        )
        assert isinstance(await outcome(call), Overloaded)
    async with running(max_metadata_bytes=100_000) as (_, _, channel):
        await channel.unary(
            NAME, "ServerLive", ModelInferRequest(), timeout_s=5, metadata={"k": "v" * 30_000}
        )


async def test_an_old_connection_is_left_and_what_runs_on_it_goes_on() -> None:
    async with (
        relayed(max_connection_age_s=0.3) as (probe, relay, channel),
        channel.stream(NAME, "ModelStreamInfer") as stream,
    ):
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        async with asyncio.timeout(10):
            while relay.connections < 2:
                assert (await ready(channel, "x")).ready
        stream.send(ModelInferRequest(id="still here"))
        assert (await anext(stream)).error_message == "still here"
        assert probe.cancels == 0


async def test_what_runs_on_an_old_connection_beyond_its_grace_ends() -> None:
    async with (
        relayed(max_connection_age_s=0.2, max_connection_age_grace_s=0.2) as (probe, _, channel),
        channel.stream(NAME, "ModelStreamInfer") as stream,
    ):
        stream.send(ModelInferRequest(id="hold"))
        await anext(stream)
        with pytest.raises(WorkerLost):
            await anext(stream)
        await eventually(lambda: probe.cancels == 1)
        assert (await ready(channel, "x")).ready
