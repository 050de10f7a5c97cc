"""A generation as an HTTP answer.

The status waits for the first delta or error; a client that goes away cancels at any moment.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway_http.answers import Answer, WholeAnswer
from gateway_http.errors import error_headers, error_json, known_error
from gateway_http.exchange import CLIENT_GONE, EXCHANGE, Exchange
from gateway_http.fan_out import Generations, generations
from gateway_http.routing import route_headers
from gateway_http.sse import ChunkWriter, error_event
from runtime.errors import Draining, InternalError, ServingError
from wire.generate import Backend, GenerateDelta, GenerateRequest

log = logging.getLogger(__name__)

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _ClientGone(Exception):
    """The peer closed its connection before the answer was complete."""


class _Writer(Protocol):
    """How deltas become an answer."""

    complete: bool

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of prompt number `prompt`."""
        ...

    async def fail(self, error: ServingError) -> None:
        """End the answer with an error."""
        ...


class GenerationResponse(Response):
    """Runs `requests` (one per prompt) on `backend` and answers as a stream or as one body."""

    def __init__(
        self,
        backend: Backend,
        requests: Sequence[GenerateRequest],
        answer: Answer,
        *,
        stream: bool,
        retry_after_s: int,
    ) -> None:
        super().__init__()
        self._backend = backend
        self._requests = requests
        self._answer = answer
        self._stream = stream
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over the server's own `send`: the layers between would cost on every chunk."""
        exchange: Exchange = scope[EXCHANGE]
        exchange.endpoint = ""
        kind = _StreamWriter if self._stream else _BodyWriter
        writer = kind(self._answer, exchange, self._retry_after_s)
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_raise_when_gone(receive, writer))
                source = generations(self._backend, self._requests, group)
                await self._relay(source, writer, watcher, exchange)
                watcher.cancel()
        except* _ClientGone:
            exchange.status = CLIENT_GONE

    async def _relay(
        self,
        source: Generations,
        writer: _Writer,
        watcher: "asyncio.Task[None]",
        exchange: Exchange,
    ) -> None:
        try:
            async with aclosing(source):
                async for prompt, delta in source:
                    await writer.write(prompt, delta)
            if not writer.complete:
                raise InternalError("the backend ended a request without its final delta")
        except asyncio.CancelledError:
            if not watcher.done():
                await writer.fail(Draining("the server is stopping"))
            raise
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client gets an end
            await writer.fail(known_error(failure, request_id=exchange.request_id))


async def _raise_when_gone(receive: Receive, writer: _Writer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not writer.complete:
        raise _ClientGone


class _BodyWriter:
    """One JSON body at the end."""

    def __init__(self, answer: Answer, exchange: Exchange, retry_after_s: int) -> None:
        self.complete = False
        self._whole = WholeAnswer(answer)
        self._exchange = exchange
        self._retry_after_s = retry_after_s

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        _tell_route(self._exchange, delta)
        self._whole.add(prompt, delta)
        if self._whole.complete:
            body = self._whole.encode()
            await self._send(200, body, [(b"content-type", b"application/json")])

    async def fail(self, error: ServingError) -> None:
        if not self.complete:
            headers = error_headers(error, self._retry_after_s)
            await self._send(error.http_status, error_json(error), headers)

    async def _send(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.complete = True
        await send_whole(self._exchange, status, body, headers)


class _StreamWriter:
    """Server-sent events, starting with the first delta."""

    def __init__(self, answer: Answer, exchange: Exchange, retry_after_s: int) -> None:
        self.complete = False
        self._chunks = ChunkWriter(answer)
        self._exchange = exchange
        self._send = exchange.send
        self._retry_after_s = retry_after_s

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        data = self._chunks.write(prompt, delta)
        if not self._exchange.status:
            _tell_route(self._exchange, delta)
            await self._start()
        if self._chunks.complete:
            self.complete = True
            await self._send({"type": "http.response.body", "body": data})
        elif data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, error: ServingError) -> None:
        if self.complete:
            return
        self.complete = True
        if self._exchange.status:
            await self._send({"type": "http.response.body", "body": error_event(error)})
        else:
            headers = error_headers(error, self._retry_after_s)
            await send_whole(self._exchange, error.http_status, error_json(error), headers)

    async def _start(self) -> None:
        self._exchange.status = 200
        headers = _SSE_HEADERS + self._exchange.headers
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


def _tell_route(exchange: Exchange, delta: GenerateDelta) -> None:
    """Say in the answer's headers where the request went; of several prompts, the first to come."""
    if delta.route is not None:
        told, exchange.told_route = exchange.told_route, True
        if not told:
            exchange.headers.extend(route_headers(delta.route))


async def send_whole(
    exchange: Exchange, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Send a complete answer."""
    exchange.status = status
    headers = [*headers, (b"content-length", b"%d" % len(body)), *exchange.headers]
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})
