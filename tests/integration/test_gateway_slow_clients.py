"""Clients that send slowly, or stop in the middle: they cost a connection for a bounded time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from gateway_http.config import GatewayConfig
from runtime.api_keys import ApiKeys
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import WAIT_S, serving, wait_for

SHORT_S = 0.2
LONG_S = 60.0
BODY = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
)


class Peer:
    """A client down to the bytes, and `http`, a well-behaved one of the same server."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.http = http
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def drip(self, data: bytes) -> None:
        """Send a byte at a time until all is sent or the server has hung up."""
        for number in range(len(data)):
            if self.reader.at_eof() or self.writer.is_closing():
                return
            self.send(data[number : number + 1])
            await self.http.get("/live")

    async def rest(self) -> bytes:
        """What comes until the server hangs up."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


@asynccontextmanager
async def peer_of(
    backend: ScriptedBackend,
    *,
    head_s: float = LONG_S,
    body_s: float = LONG_S,
    keys: ApiKeys | None = None,
) -> AsyncIterator[Peer]:
    config = GatewayConfig(body_timeout_s=body_s)
    limits: dict[str, Any] = {"head_timeout_s": head_s, "body_timeout_s": body_s}
    async with asyncio.timeout(WAIT_S), serving(backend, config, access=keys, **limits) as http:
        peer = Peer(http, *await asyncio.open_connection(*address(http)))
        try:
            yield peer
        finally:
            peer.writer.close()


def address(http: httpx2.AsyncClient) -> tuple[str, int | None]:
    return http.base_url.host, http.base_url.port


async def test_silence_after_connecting_is_closed() -> None:
    async with peer_of(ScriptedBackend(), head_s=SHORT_S) as peer:
        assert await peer.rest() == b""


async def test_a_head_that_takes_too_long_is_refused() -> None:
    async with peer_of(ScriptedBackend(), head_s=SHORT_S) as peer:
        peer.send(b"GET /live HTTP/1.1\r\nhost: x\r\n")
        head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_bytes_now_and_then_win_no_time() -> None:
    async with peer_of(ScriptedBackend(), head_s=SHORT_S) as peer, asyncio.TaskGroup() as tasks:
        dripping = tasks.create_task(peer.drip(b"GET /live HTTP/1.1\r\nx: " + b"a" * 10_000))
        await peer.rest()  # within WAIT_S, and long before all is sent
        dripping.cancel()


async def test_the_second_head_of_a_connection_has_a_limit_too() -> None:
    async with peer_of(ScriptedBackend(), head_s=SHORT_S) as peer:
        peer.send(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
        await peer.reader.readuntil(b'{"status":"live"}')
        peer.send(b"GET /live HTTP/1.1\r\n")
        assert (await peer.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_takes_too_long_is_refused_and_its_connection_closed() -> None:
    backend = ScriptedBackend()
    async with peer_of(backend, body_s=SHORT_S) as peer:
        peer.send(HEAD + BODY[:10])
        head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head
        assert json.loads(body)["error"]["code"] == "request_timeout"
    assert not backend.requests


async def test_a_body_that_nobody_reads_is_waited_for_so_long_and_no_longer() -> None:
    keys = ApiKeys(file=None, variable="a-key-that-is-not-sent")
    async with peer_of(ScriptedBackend(), body_s=SHORT_S, keys=keys) as peer:
        peer.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{")
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
        async with asyncio.TaskGroup() as tasks:
            dripping = tasks.create_task(peer.drip(b" " * 99_999))
            await peer.rest()  # within WAIT_S, and long before all is sent
            dripping.cancel()


async def test_a_client_that_sends_its_body_behind_a_refusal_can_go_on() -> None:
    keys = ApiKeys(file=None, variable="a-key-that-is-not-sent")
    async with peer_of(ScriptedBackend(), keys=keys) as peer:
        for _ in range(2):
            peer.send(HEAD + BODY[:10])
            assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
            peer.send(BODY[10:])
            await peer.reader.readuntil(b'"invalid_api_key"}}')


async def test_a_long_answer_is_no_slow_request() -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(gate, "Paris")
    async with peer_of(backend, head_s=SHORT_S, body_s=SHORT_S) as peer:
        # With the beginning of a next request, whose time begins when it can be looked at.
        peer.send(HEAD + BODY + b"GET /live HTTP/1.1\r\n")
        await wait_for(backend.started)
        # Another connection's limit, which began later, has passed.
        later, writer = await asyncio.open_connection(*address(peer.http))
        assert await later.read() == b""
        writer.close()
        gate.set()
        answer = await peer.reader.readuntil(b'"reasoning_tokens":0}}}')
        assert answer.startswith(b"HTTP/1.1 200 ")
        peer.send(b"host: x\r\n\r\n")
        await peer.reader.readuntil(b'{"status":"live"}')
