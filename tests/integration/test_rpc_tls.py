"""gRPC over TLS: who gets in, and what a change of certificates does to open connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace as changed
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, wait_fixed

from runtime.errors import ServingError, WorkerLost
from runtime.grpc_client import RpcChannel
from runtime.tls import ClientTls, ServerTls
from tests.certificates import Authority, replace
from tests.integration.rpc_probe import NAME, Probe, make_server, outcome, ready
from tests.transports import make_channel
from wire.inference_pb2 import ModelInferRequest
from wire.pool import rpc_types

pytestmark = pytest.mark.usefixtures("each_transport")


@pytest.fixture
def one(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "two")


@asynccontextmanager
async def served(tls: ServerTls) -> AsyncIterator[str]:
    server = make_server(Probe(), tls=tls.open())
    try:
        async with asyncio.timeout(20):
            yield await server.start()
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(address: str, tls: ClientTls | None) -> AsyncIterator[RpcChannel]:
    channel = make_channel(address, rpc_types=rpc_types, tls=tls)
    try:
        yield channel
    finally:
        await channel.close()


async def gets_in(address: str, tls: ClientTls | None) -> bool:
    async with connected(address, tls) as channel:
        answer = await outcome(ready(channel, "m"))
        assert not isinstance(answer, ServingError) or isinstance(answer, WorkerLost)
        return not isinstance(answer, ServingError)


async def test_a_client_trusts_the_authority_it_is_told_and_no_other(
    one: Authority, two: Authority
) -> None:
    async with served(one.server()[0]) as address:
        assert await gets_in(address, ClientTls(ca=one.file))
        assert not await gets_in(address, ClientTls(ca=two.file))
        assert not await gets_in(address, ClientTls())
        assert not await gets_in(address, None)


async def test_the_certificates_name_must_be_the_address_or_the_one_given(one: Authority) -> None:
    files = one.identity("named", "worker.fleet")
    async with served(ServerTls(cert=files.cert, key=files.key)) as address:
        assert not await gets_in(address, ClientTls(ca=one.file))
        assert await gets_in(address, ClientTls(ca=one.file, server_name="worker.fleet"))
        assert not await gets_in(address, ClientTls(ca=one.file, server_name="other.fleet"))


async def test_mutual_tls_lets_in_clients_of_the_authority_only(
    one: Authority, two: Authority
) -> None:
    async with served(one.server(client_ca=two.file)[0]) as address:
        known, _ = two.client(trusting=one.file)
        stranger, _ = one.client()
        assert await gets_in(address, known)
        assert not await gets_in(address, stranger)
        assert not await gets_in(address, ClientTls(ca=one.file))


async def test_new_certificates_hold_for_new_connections_while_an_old_stream_goes_on(
    one: Authority, two: Authority, tmp_path: Path
) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(one.pem)
    tls, files = one.server(client_ca=clients)
    old, _ = one.client()
    async with (
        served(tls) as address,
        connected(address, old) as channel,
        channel.stream(NAME, "ModelStreamInfer") as stream,
    ):
        stream.send(ModelInferRequest(id="before"))
        assert (await anext(stream)).error_message == "before"
        files.renew(two)
        replace(clients, two.pem)
        new, _ = two.client()
        assert await gets_in(address, new)
        assert not await gets_in(address, old)
        assert not await gets_in(address, changed(old, ca=two.file))
        stream.send(ModelInferRequest(id="after"))
        assert (await anext(stream)).error_message == "after"


async def test_a_broken_change_leaves_the_old_certificate_in_use(one: Authority) -> None:
    tls, files = one.server()
    async with served(tls) as address:
        files.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nMIG")
        assert await gets_in(address, ClientTls(ca=one.file))


async def test_a_client_shows_its_new_certificate_when_it_connects_again(
    one: Authority, two: Authority, tmp_path: Path
) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(one.pem)
    tls, _ = one.server(client_ca=clients)
    client, files = one.client()
    server = make_server(Probe(), tls=tls.open())
    address = await server.start()
    async with asyncio.timeout(20), connected(address, client) as channel:
        await ready(channel, "m")
        await server.stop(0)
        replace(clients, two.pem)
        files.renew(two, "client@localhost")
        server = make_server(Probe(), port=int(address.rpartition(":")[2]), tls=tls.open())
        await server.start()
        async for attempt in AsyncRetrying(wait=wait_fixed(0.05)):
            with attempt:
                await ready(channel, "m")
    await server.stop(0)


async def test_what_all_calls_carry_is_asked_for_at_each(one: Authority) -> None:
    probe = Probe()
    server = make_server(probe, tls=one.server()[0].open())
    numbers = iter("12")
    channel = make_channel(
        await server.start(),
        rpc_types=rpc_types,
        tls=ClientTls(ca=one.file),
        call_metadata=lambda: {"authorization": f"Bearer {next(numbers)}", "x": "all"},
    )
    async with asyncio.timeout(20):
        for metadata in (None, {"x": "own"}):
            message = ModelInferRequest()
            await channel.unary(NAME, "ServerLive", message, timeout_s=5, metadata=metadata)
    seen = [(info.metadata["authorization"], info.metadata["x"]) for info in probe.infos]
    assert seen == [("Bearer 1", "all"), ("Bearer 2", "own")]
    await channel.close()
    await server.stop(0)


async def test_a_handshake_that_never_ends_is_closed(one: Authority) -> None:
    server = make_server(Probe(), tls=one.server()[0].open(), handshake_timeout_s=0.2)
    host, _, port = (await server.start()).rpartition(":")
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read() == b""
        writer.close()
    await server.stop(0)
