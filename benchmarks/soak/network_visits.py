"""Visits that break the connection itself: resets, readers without window, bytes of no protocol."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from random import Random
from urllib.parse import urlsplit

import httpx2

from benchmarks.soak.kserve_visits import Answers, ask, new_channel, open_stream, read, send
from benchmarks.soak.ledger import GOOD, LEFT, Kind, Site
from benchmarks.soak.openai_visits import CHAT, chat_body, post
from runtime.errors import ServingError

_RESET = struct.pack("ii", 1, 0)
_SMALL_BYTES = 4096


class Relay:
    """A TCP relay in front of one port.

    `reset` ends its connections to the server with RST instead of FIN. With `pace_s` it reads a
    little of what the server sends, then pauses so long: the server's window fills.
    """

    def __init__(self, host: str, port: int, pace_s: float) -> None:
        self._target = host, port
        self._pace_s = pace_s
        self._behind: dict[socket.socket, asyncio.StreamWriter] = {}
        self._connected = asyncio.Event()

    async def reset_after(self, delay_s: float) -> None:
        """Cut all connections some time after there is one."""
        await self._connected.wait()
        await asyncio.sleep(delay_s)
        self.reset()

    def reset(self) -> None:
        """Cut all connections."""
        for behind, writer in self._behind.items():
            behind.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self._behind.clear()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        answers, requests = await self._connect()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, requests, 0.0))
                group.create_task(_pump(answers, writer, self._pace_s))
        finally:
            requests.close()
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        behind = socket.socket()
        behind.setblocking(False)
        if self._pace_s:
            behind.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
        await asyncio.get_running_loop().sock_connect(behind, self._target)
        answers, requests = await asyncio.open_connection(sock=behind)
        self._behind[behind] = requests
        self._connected.set()
        return answers, requests


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace_s: float) -> None:
    # A stream that was aborted is an OSError to read, and with uvloop a RuntimeError to write.
    with suppress(OSError, RuntimeError):
        while data := await reader.read(_SMALL_BYTES):
            writer.write(data)
            await writer.drain()
            if pace_s:
                await asyncio.sleep(pace_s)
    writer.close()


@asynccontextmanager
async def relay(address: str, pace_s: float = 0.0) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to `address`, and its own address."""
    host, _, port = address.rpartition(":")
    carrier = Relay(host, int(port), pace_s)
    server = await asyncio.start_server(carrier.carry, host, 0)
    try:
        yield carrier, f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        carrier.reset()
        server.close()


def http_address(site: Site) -> str:
    """host:port of the HTTP front."""
    return urlsplit(site.http).netloc


async def grpc_reset(site: Site, rng: Random) -> Iterable[str]:
    """A connection that is reset while requests run on it."""
    requests = [ask(rng) for _ in range(rng.randint(1, 8))]
    answers = Answers(site, requests)
    async with (
        relay(site.grpc) as (carrier, address),
        new_channel(address) as channel,
        open_stream(channel) as stream,
        asyncio.TaskGroup() as group,
    ):
        send(stream, requests)
        group.create_task(carrier.reset_after(rng.uniform(0.0, 1.0)))
        try:
            await read(stream, answers)
        except ServingError as error:
            if error.reason != "worker_lost":
                raise
    return answers.outcomes()


async def http_reset(site: Site, rng: Random) -> Iterable[str]:
    """The same to the HTTP front."""
    async with (
        relay(http_address(site)) as (carrier, address),
        httpx2.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=None) as client,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(carrier.reset_after(rng.uniform(0.0, 1.0)))
        body = chat_body(rng, stream=rng.random() < 0.7)
        with suppress(httpx2.TransportError):
            await client.post(CHAT, json=body)
    return [LEFT]


async def grpc_trickle(site: Site, rng: Random) -> Iterable[str]:
    """A client whose connection takes a few bytes at a time."""
    requests = [ask(rng) for _ in range(rng.randint(4, 12))]
    async with (
        relay(site.grpc, pace_s=0.02) as (_, address),
        new_channel(address) as channel,
        open_stream(channel) as stream,
    ):
        send(stream, requests)
        stream.half_close()
        return await read(stream, Answers(site, requests))


async def http_trickle(site: Site, rng: Random) -> Iterable[str]:
    """The same to the HTTP front."""
    async with (
        relay(http_address(site), pace_s=0.02) as (_, address),
        httpx2.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=None) as client,
    ):
        slow = Site(grpc=site.grpc, http=site.http, channels=[], client=client)
        return await post(slow, CHAT, chat_body(rng, stream=True))


async def noise(site: Site, rng: Random) -> Iterable[str]:
    """Bytes of no protocol, half a request, or nothing at all; then the connection is closed."""
    address = rng.choice((site.grpc, http_address(site)))
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    half = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
    with suppress(OSError):
        writer.write(rng.choice((b"", half, rng.randbytes(rng.randint(1, 4000)))))
        await writer.drain()
        await asyncio.sleep(rng.uniform(0.0, 0.5))
    writer.close()
    return [LEFT]


KINDS = (
    Kind("kserve reset", 5, grpc_reset, GOOD | {LEFT}),
    Kind("chat reset", 5, http_reset, frozenset({LEFT})),
    Kind("kserve trickle", 2, grpc_trickle),
    Kind("chat trickle", 2, http_trickle),
    Kind("noise", 5, noise, frozenset({LEFT})),
)
