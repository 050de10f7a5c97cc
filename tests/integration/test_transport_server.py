"""The native server on a socket, for clients that are no gRPC library, or no friends."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from runtime.grpc_client import RpcChannel
from runtime.grpc_options import NATIVE, GrpcOptions
from runtime.rpc_server import RpcServer
from tests.certificates import Authority
from tests.integration.h2_client import POST, connected
from tests.integration.rpc_probe import NAME, Probe, make_server, ready, running
from tests.waiting import eventually
from transport.choice import make_server as make_rpc_server
from transport.codes import PREFACE
from transport.frames import frame, ping_frame
from wire.inference_pb2 import ModelInferRequest, ModelReadyRequest, ModelReadyResponse
from wire.pool import POOL, rpc_types

READY = f"/{NAME}/ModelReady"
STREAM = f"/{NAME}/ModelStreamInfer"
NOBODY = ModelReadyRequest(name="x").SerializeToString()


def native(**options: Any) -> Any:
    return running(transport=NATIVE, **options)


async def test_a_unary_call_is_headers_a_message_and_trailers() -> None:
    async with native() as (_, _, channel), connected(channel.address) as client:
        headers, body = await client.ask(READY, NOBODY)
    assert headers[":status"] == "200"
    assert headers["content-type"] == "application/grpc"
    assert headers["grpc-status"] == "0"
    assert ModelReadyResponse.FromString(body[5:]).ready


@pytest.mark.parametrize(
    ("path", "message", "headers", "status"),
    [
        ("/nobody/Nothing", NOBODY, [], "12"),
        (f"/{NAME}/Nothing", NOBODY, [], "12"),
        (READY, None, [], "3"),
        (READY, b"\xff\xff", [], "3"),
        (READY, b"\xff" * 50_000, [], "3"),
        (READY, NOBODY, [("grpc-timeout", "soon")], "3"),
        (READY, NOBODY, [("x-bin", "!!!!")], "3"),
        (READY, NOBODY, [("grpc-encoding", "br")], "0"),
    ],
)
async def test_what_is_wrong_with_a_call_is_its_status(
    path: str, message: bytes | None, headers: list[tuple[str, str]], status: str
) -> None:
    async with native() as (_, _, channel), connected(channel.address) as client:
        answer, _ = await client.ask(path, message, headers=headers)
        assert answer["grpc-status"] == status
        # The connection and its other calls live on.
        assert (await client.ask(READY, NOBODY))[0]["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (":method", "GET", "405"),
        ("content-type", "text/plain", "415"),
        ("content-type", "application/grpc-web", "415"),
    ],
)
async def test_what_is_no_grpc_gets_an_http_error(name: str, value: str, status: str) -> None:
    base = [(key, value if key == name else it) for key, it in POST]
    async with native() as (_, _, channel), connected(channel.address) as client:
        assert (await client.ask(READY, NOBODY, base=base))[0][":status"] == status


async def test_a_unary_call_takes_one_message() -> None:
    async with native() as (_, _, channel), connected(channel.address) as client:
        headers, _ = await client.ask(READY, NOBODY + b"\0\0\0\0\0")
        assert headers["grpc-status"] == "3"


async def test_a_deadline_that_passes_is_told_and_ends_the_handler() -> None:
    async with native() as (probe, _, channel), connected(channel.address) as client:
        wait = ModelReadyRequest(name="wait").SerializeToString()
        headers, _ = await client.ask(READY, wait, headers=[("grpc-timeout", "50m")])
        assert headers["grpc-status"] == "4"
        await eventually(lambda: probe.left)


async def test_a_client_that_never_greets_is_closed() -> None:
    async with native(handshake_timeout_s=0.1) as (_, server, channel):
        for greeting in (b"", PREFACE[:10], PREFACE + frame(4, 0, 0)):
            host, _, port = channel.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(greeting)
            # The last one has said all but that it takes our settings.
            await reader.read(-1)
            writer.close()
        assert server.in_flight == 0


async def test_a_client_that_floods_is_closed_and_others_are_served() -> None:
    async with native() as (_, _, channel):
        host, _, port = channel.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(4, 0, 0) + frame(4, 1, 0) + ping_frame(bytes(8)) * 1000)
        assert b"too many pings" in await reader.read(-1)
        writer.close()
        assert (await ready(channel, "x")).ready


async def test_a_client_of_http1_is_closed() -> None:
    async with native() as (_, _, channel):
        host, _, port = channel.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"preface" in await reader.read(-1)
        writer.close()


async def test_a_client_that_reads_nothing_holds_up_nobody_and_costs_a_bounded_queue() -> None:
    async with native() as (probe, _, channel), connected(channel.address) as client:
        probe.flood_size = 10**9
        stream_id = client.h2.get_next_available_stream_id()
        client.h2.increment_flow_control_window(2**30)
        client.h2.update_settings({4: 2**30})
        client.h2.send_headers(stream_id, [*POST[:3], (":path", STREAM), *POST[3:]])
        flood = ModelInferRequest(id="flood").SerializeToString()
        client.h2.send_data(stream_id, b"\0" + len(flood).to_bytes(4, "big") + flood)
        await client.flush()
        await asyncio.wait_for(probe.paused.wait(), 10)
        # What the kernel takes, and a little: the handler has stopped.
        assert probe.produced * 16_384 < 64 * 2**20
        assert (await ready(channel, "x")).ready


async def test_a_client_that_vanishes_ends_its_calls() -> None:
    async with native() as (probe, server, channel):
        async with connected(channel.address) as client:
            stream_id = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream_id, [*POST[:3], (":path", STREAM), *POST[3:]])
            await client.flush()
            await eventually(lambda: server.in_flight == 1)
        await asyncio.wait_for(probe.cancelled.wait(), 10)
        await eventually(lambda: server.in_flight == 0)


async def test_a_client_that_does_not_ask_for_http2_is_closed(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "one")
    tls, _ = authority.server()
    server = make_server(Probe(), tls=tls.open(), transport=NATIVE)
    address = await server.start()
    context = ssl.create_default_context(cafile=str(authority.file))
    try:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(PREFACE + frame(4, 0, 0))
        assert await reader.read(-1) == b""
        writer.close()
    finally:
        await server.stop(0)


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    probe = Probe()
    server: RpcServer = make_rpc_server(
        services=[probe.service()],
        rpc_types=rpc_types,
        pool=POOL,
        host=f"unix:{tmp_path / 'socket'}",
        port=0,
        options=GrpcOptions(transport=NATIVE),
    )
    channel = RpcChannel(await server.start(), rpc_types=rpc_types)
    try:
        assert (await ready(channel, "x")).ready
    finally:
        await channel.close()
        await server.stop(0)


async def test_two_servers_may_share_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = [make_server(Probe(), port, transport=NATIVE, share_port=True) for _ in range(2)]
    assert len({await server.start() for server in servers}) == 1
    for server in servers:
        await server.stop(0)
