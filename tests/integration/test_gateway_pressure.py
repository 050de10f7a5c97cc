"""Clients that leave at any moment, and clients that do not read, over real HTTP and gRPC."""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from gateway_http.http_server import HttpServer
from tests.integration.gateway_client import serving
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

TRIES = 5
FREE_S = 0.1
SLOW, FAST = 248, 8
TOKENS = 1200
MOST_GROWTH_BYTES = 96 * 1024**2


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=SimConfig(timing=SimTiming())) as made:
        yield made


def request(body: dict[str, Any], *, cut: int = 0) -> bytes:
    data = json.dumps({"model": "sim", "prompt": "Hello there", "temperature": 0, **body}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + (data[:-cut] if cut else data)


LONG = {"max_tokens": 8000}
PHASES: dict[str, tuple[dict[str, Any], bytes | None]] = {
    "while its prompt is computed": ({**LONG, "prompt": "word " * 6000, "stream": True}, None),
    "before a whole answer": (LONG, None),
    "within a stream": ({**LONG, "stream": True}, b'"text":"'),
    "within a stream of several answers": ({**LONG, "stream": True, "n": 3, "temperature": 1},
                                           b'"index":2'),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_frees_the_engine_within_a_tenth_of_a_second(
    stack: Stack, phase: str
) -> None:
    body, seen = PHASES[phase]
    took_s = []
    async with serving(stack.door.backend) as http:
        for _ in range(TRIES):
            url = http.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(request(body))
            await eventually(lambda: stack.engine_load > 0)
            if seen is not None:
                async with asyncio.timeout(10):
                    await reader.readuntil(seen)
            began_s = time.monotonic()
            writer.transport.abort()
            await eventually(lambda: stack.engine_load == 0)
            took_s.append(time.monotonic() - began_s)
    assert statistics.median(took_s) < FREE_S, took_s


async def test_a_client_that_leaves_within_its_body_reaches_no_engine(stack: Stack) -> None:
    async with serving(stack.door.backend) as http:
        url = http.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request(LONG, cut=3))
        await writer.drain()
        writer.transport.abort()
        assert (await http.get("/live")).status_code == 200
    assert stack.engine_load == 0


class Client:
    """One streamed answer, read or not, over a socket that holds little."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self.data = b""
        self._address = ("127.0.0.1", port)

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self._address)
        body = {"max_tokens": TOKENS, "stream": True, "ignore_eos": True}
        await loop.sock_sendall(self.socket, request(body))

    async def read(self) -> None:
        loop = asyncio.get_running_loop()
        while part := await loop.sock_recv(self.socket, 65536):
            self.data += part

    @property
    def chunks(self) -> list[str]:
        """The texts of the chunks that have come."""
        lines = [line for line in self.data.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line[6:])["choices"][0]["text"] for line in lines]


@asynccontextmanager
async def gateway(stack: Stack) -> AsyncIterator[int]:
    """A gateway whose sockets hold little, so that what is not read stays with it; its port."""
    app = create_app(stack.door.backend, GatewayConfig(keep_alive_s=0))
    server = HttpServer(app, host="127.0.0.1", port=0)
    url = await server.start()
    assert server._listener is not None
    for listening in server._listener.sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        yield int(url.rpartition(":")[2])
    finally:
        await server.stop(0.5)


async def fast_seconds(stack: Stack, *, others_read: bool) -> tuple[float, list[Client]]:
    """How long the fast ones take beside others; and the others, who have their answers then."""
    async with gateway(stack) as port:
        others = [Client(port) for _ in range(SLOW)]
        fast = [Client(port) for _ in range(FAST)]
        async with asyncio.TaskGroup() as group:
            for client in (*others, *fast):
                await client.ask()
            reading = [group.create_task(it.read()) for it in others] if others_read else []
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as readers:
                for client in fast:
                    readers.create_task(client.read())
            took_s = time.monotonic() - began_s
            await eventually(lambda: stack.engine_load == 0, limit_s=60)
            assert len(reading) in (0, SLOW)
            if not others_read:
                async with asyncio.TaskGroup() as late:
                    for client in others:
                        late.create_task(client.read())
    for client in (*others, *fast):
        client.socket.close()
        assert client.data.endswith(b"data: [DONE]\n\n") or b"[DONE]" in client.data[-40:]
    return took_s, others


@pytest.mark.timeout(180)
async def test_readers_that_are_slow_cost_little_memory_and_none_of_the_others_time(
    model_folder: Path,
) -> None:
    sim = SimConfig(timing=SimTiming(speedup=4), kv_blocks=16384)
    async with running_stack(model_folder, sim=sim) as stack:
        reading_s, _ = await fast_seconds(stack, others_read=True)
        process = psutil.Process()
        before = process.memory_info().rss
        slow_s, others = await fast_seconds(stack, others_read=False)
        growth = process.memory_info().rss - before
    texts = {"".join(client.chunks) for client in others}
    assert len(texts) == 1
    assert sum(len(client.chunks) for client in others) < SLOW * TOKENS / 2
    assert slow_s < 1.5 * reading_s
    assert growth < MOST_GROWTH_BYTES
