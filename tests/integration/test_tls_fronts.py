"""TLS in front: the clients people use, and certificates that change under open connections."""

import asyncio
import logging
import ssl
from pathlib import Path

import httpx2
import openai
import pytest
import tritonclient.grpc.aio as triton
from tenacity import AsyncRetrying, wait_fixed
from tritonclient.utils import InferenceServerException

from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from gateway_http.http_server import HttpServer
from runtime.errors import WorkerLost
from runtime.grpc_client import RpcChannel
from runtime.tls import ClientTls, ServerTls
from tests.certificates import Authority, Identity, replace
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import WAIT_S, openai_for, serving
from tests.integration.stack import running_stack
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def one(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "two")


def trusting(authority: Authority, shown: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if shown is not None:
        context.load_cert_chain(shown.cert, shown.key)
    return context


async def status(url: str | httpx2.URL, context: ssl.SSLContext) -> int | None:
    """The status of a new connection's request; None when TLS fails."""
    try:
        async with httpx2.AsyncClient(verify=context, timeout=WAIT_S, trust_env=False) as client:
            return (await client.get(f"{url}/live")).status_code
    except (httpx2.ConnectError, httpx2.ReadError, httpx2.RemoteProtocolError):
        return None


async def test_openais_client_over_tls(one: Authority, two: Authority) -> None:
    tls = one.server()[0].open()
    async with serving(ScriptedBackend("Paris"), tls=tls, verify=trusting(one)) as http:
        assert http.base_url.scheme == "https"
        custom = openai.DefaultAsyncHttpxClient(verify=trusting(one))
        async with openai_for(http, http_client=custom) as client:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == "Paris"
        stranger = openai.DefaultAsyncHttpxClient(verify=trusting(two))
        async with openai_for(http, http_client=stranger) as client:
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()
        plain = str(http.base_url).replace("https", "http")
        async with httpx2.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(f"{plain}/live")


async def test_mutual_tls_over_http_lets_in_clients_of_the_authority_only(
    one: Authority, two: Authority
) -> None:
    tls = one.server(client_ca=two.file)[0].open()
    known, stranger = two.identity("client", "a@b"), one.identity("client", "a@b")
    async with serving(ScriptedBackend(), tls=tls, verify=trusting(one, known)) as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert await status(http.base_url, trusting(one, stranger)) is None
        assert await status(http.base_url, trusting(one)) is None


async def test_changed_certificates_and_authorities_hold_for_new_connections_only(
    one: Authority, two: Authority, tmp_path: Path
) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(one.pem)
    tls, files = one.server(client_ca=clients)
    of_one, of_two = one.identity("client", "a@b"), two.identity("client", "a@b")
    gate = asyncio.Event()
    backend = ScriptedBackend("Par", gate, "is")
    async with serving(backend, tls=tls.open(), verify=trusting(one, of_one)) as http:
        url = http.base_url
        body = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            files.renew(two)
            replace(clients, two.pem)
            assert await status(url, trusting(two, of_two)) == 200
            assert await status(url, trusting(two, of_one)) is None
            assert await status(url, trusting(one, of_one)) is None
            gate.set()
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert (await http.get("/live")).status_code == 200  # on the connection of before


async def test_an_expired_certificate_is_replaced_without_a_restart(
    model_folder: Path, one: Authority
) -> None:
    tls, files = one.server()
    files.renew(one, expired=True)
    sim = SimConfig(timing=SimTiming(speedup=0))
    async with (
        asyncio.timeout(40),
        running_stack(model_folder, sim=sim, tls=tls.open()) as stack,
        serving(stack.door.backend, tls=tls.open(), verify=trusting(one)) as http,
    ):
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types, tls=ClientTls(ca=one.file))
        with pytest.raises(httpx2.ConnectError, match="expired"):
            await http.get("/live")
        assert not await channel.is_serving(timeout_s=WAIT_S)
        with pytest.raises(WorkerLost):
            await channel.unary(KSERVE, "ServerLive", pb.ServerLiveRequest(), timeout_s=WAIT_S)
        files.renew(one)
        assert (await http.get("/live")).status_code == 200
        async for attempt in AsyncRetrying(wait=wait_fixed(0.05)):
            with attempt:
                await channel.unary(KSERVE, "ServerLive", pb.ServerLiveRequest(), timeout_s=WAIT_S)
        await channel.close()


async def test_a_client_of_a_former_authority_cannot_resume_its_session(
    one: Authority, two: Authority, tmp_path: Path
) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(one.pem)
    tls, _ = one.server(client_ca=clients)
    context = trusting(one, one.identity("client", "a@b"))
    server = HttpServer(
        create_app(ScriptedBackend(), GatewayConfig()), host="127.0.0.1", port=0, tls=tls.open()
    )
    port = int((await server.start()).rpartition(":")[2])

    def ask(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None, bool | None]:
        import socket

        with (
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as wrapped,
        ):
            wrapped.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            try:
                return wrapped.recv(4096), wrapped.session, wrapped.session_reused
            except OSError:
                return b"", None, None

    _, session, _ = await asyncio.to_thread(ask, None)
    answer, _, reused = await asyncio.to_thread(ask, session)
    assert (answer[:12], reused) == (b"HTTP/1.1 200", True)
    replace(clients, two.pem)
    answer, _, _ = await asyncio.to_thread(ask, session)
    assert answer == b""
    await server.stop(0)


async def test_a_broken_change_keeps_the_old_certificate_and_is_logged_once(
    one: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls, files = one.server()
    async with serving(ScriptedBackend(), tls=tls.open(), verify=trusting(one)) as http:
        whole = files.cert.read_bytes()
        files.cert.write_bytes(whole[: len(whole) // 2])
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                assert await status(http.base_url, trusting(one)) == 200
        warnings = [it for it in caplog.records if it.levelno >= logging.WARNING]
        assert [str(files.cert) in it.getMessage() for it in warnings] == [True]


async def test_a_tls_handshake_that_never_ends_is_closed(one: Authority) -> None:
    tls = one.server()[0].open()
    server = HttpServer(
        create_app(ScriptedBackend(), GatewayConfig()),
        host="127.0.0.1",
        port=0,
        tls=tls,
        handshake_timeout_s=0.1,
    )
    port = int((await server.start()).rpartition(":")[2])
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        assert await reader.read() == b""
        writer.close()
    await server.stop(0)


@pytest.mark.parametrize("mutual", [False, True])
async def test_tritons_client_over_tls(
    model_folder: Path, one: Authority, two: Authority, mutual: bool
) -> None:
    tls: ServerTls = one.server(client_ca=two.file if mutual else None)[0]
    shown = two.identity("client", "a@b")
    sim = SimConfig(timing=SimTiming(speedup=0))
    async with asyncio.timeout(40), running_stack(model_folder, sim=sim, tls=tls.open()) as stack:
        own = {"private_key": str(shown.key), "certificate_chain": str(shown.cert)}

        async def is_ready(authority: Authority, **identity: str) -> bool:
            async with triton.InferenceServerClient(
                stack.grpc, ssl=True, root_certificates=str(authority.file), **identity
            ) as client:
                return bool(await client.is_model_ready("sim"))

        assert await is_ready(one, **own)
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            await is_ready(two, **own)
        if mutual:
            with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                await is_ready(one)
