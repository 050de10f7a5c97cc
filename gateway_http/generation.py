"""A generation as an HTTP answer.

The status waits for the first delta or error; a client that goes away cancels at any moment.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway_http.config import GatewayConfig
from gateway_http.errors import error_headers, known_error
from gateway_http.exchange import CLIENT_GONE, EXCHANGE, Exchange
from gateway_http.fan_out import Generations, generations
from gateway_http.http_protocol import RequestConnection
from gateway_http.routing import route_headers
from runtime.errors import Draining, InternalError, ServingError
from wire.generate import Backend, GenerateDelta, GenerateRequest, OnText

_COMMENT = b": keep-alive\n\n"
log = logging.getLogger(__name__)

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Body(Protocol):
    """What one JSON body is made of. `headers` and `encode` are asked for when it is complete."""

    @property
    def complete(self) -> bool:
        """Whether every prompt has had its final delta."""
        ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that the encoded body needs; asked for after `encode`."""
        ...

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of prompt number `prompt`."""
        ...

    def encode(self) -> bytes:
        """The body."""
        ...

    def error_body(self, error: ServingError) -> bytes:
        """The body that says what went wrong instead."""
        ...


class Events(Protocol):
    """What server-sent events are made of."""

    @property
    def complete(self) -> bool:
        """Whether every prompt has had its final delta."""
        ...

    def write(self, prompt: int, delta: GenerateDelta) -> bytes:
        """The events of the next delta of prompt number `prompt`; may be empty."""
        ...

    def text(self, text: str) -> bytes | None:
        """The same for a delta of prompt 0 that is nothing but text of its choice 0.

        None, and nothing is taken, where `write` has to be asked, as for the first delta.
        """
        ...

    def error_event(self, error: ServingError) -> bytes:
        """The event that ends a broken stream."""
        ...

    def error_body(self, error: ServingError) -> bytes:
        """The body that says what went wrong before anything was sent."""
        ...


class _Writer(Protocol):
    """How deltas become an answer, between `begin` and `close`.

    `on_text` is an `OnText` for the backend, where the answer can be one.
    """

    complete: bool
    on_text: OnText | None

    def begin(self) -> None:
        """The answer is being made from now on."""
        ...

    def close(self) -> None:
        """Nothing more is to be said; idempotent."""
        ...

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of prompt number `prompt`."""
        ...

    async def fail(self, error: ServingError) -> None:
        """End the answer with an error."""
        ...


_MakeWriter: TypeAlias = Callable[[Exchange], _Writer]


class GenerationResponse(Response):
    """Runs `requests` (one per prompt) on `backend` and answers with what `writer` makes of it."""

    def __init__(
        self, backend: Backend, requests: Sequence[GenerateRequest], writer: _MakeWriter
    ) -> None:
        super().__init__()
        self._backend = backend
        self._requests = requests
        self._make_writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over the server's own `send`: the layers between would cost on every chunk."""
        exchange: Exchange = scope[EXCHANGE]
        exchange.endpoint = ""
        writer = self._make_writer(exchange)
        client = _Client(writer, exchange)
        try:
            async with asyncio.TaskGroup() as group:
                source = generations(self._backend, self._requests, group, writer.on_text)
                writer.begin()
                await self._relay(source, writer, client, exchange)
        except asyncio.CancelledError:
            if not client.left:
                raise
            exchange.status = CLIENT_GONE
        finally:
            client.forget()
            writer.close()

    async def _relay(
        self, source: Generations, writer: _Writer, client: "_Client", exchange: Exchange
    ) -> None:
        try:
            async with aclosing(source):
                async for prompt, delta in source:
                    await writer.write(prompt, delta)
            if not writer.complete:
                raise InternalError("the backend ended a request without its final delta")
        except asyncio.CancelledError:
            if not client.left:
                await writer.fail(Draining("the server is stopping"))
            raise
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client gets an end
            await writer.fail(known_error(failure, request_id=exchange.request_id))


class _Client:
    """Cancels the task that makes it when the client closes its connection too early."""

    def __init__(self, writer: _Writer, exchange: Exchange) -> None:
        self.left = False
        self._writer = writer
        self._connection = exchange.connection
        self._task = asyncio.current_task()
        if self._connection is not None:
            self._connection.watch(self._leave)

    def forget(self) -> None:
        """The task goes on to other things."""
        if self._connection is not None:
            self._connection.unwatch()
        if self.left and self._task is not None:
            self._task.uncancel()

    def _leave(self) -> None:
        if not self._writer.complete and not self.left and self._task is not None:
            self.left = True
            self._task.cancel()


class _BodyWriter:
    """One JSON body at the end."""

    on_text: OnText | None = None

    def __init__(self, body: Body, exchange: Exchange, retry_after_s: int) -> None:
        self.complete = False
        self._whole = body
        self._exchange = exchange
        self._retry_after_s = retry_after_s

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        _tell_route(self._exchange, delta)
        self._whole.add(prompt, delta)
        if self._whole.complete:
            body = self._whole.encode()
            await self._send(200, body, self._whole.headers)

    async def fail(self, error: ServingError) -> None:
        if not self.complete:
            headers = error_headers(error, self._retry_after_s)
            await self._send(error.http_status, self._whole.error_body(error), headers)

    def begin(self) -> None:
        """Nothing can be said before the answer."""

    def close(self) -> None:
        """Nothing runs."""

    async def _send(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.complete = True
        await send_whole(self._exchange, status, body, headers)


class _StreamWriter:
    """Server-sent events, starting with the first delta or after a silence.

    What fails before is a plain error answer, later it is an event.
    """

    def __init__(self, events: Events, exchange: Exchange, config: GatewayConfig) -> None:
        self.complete = False
        self._chunks = events
        self._exchange = exchange
        self._send = exchange.send
        self._retry_after_s = config.retry_after_s
        self._silence_s = config.keep_alive_s
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self._written = self._seen = 0
        self._busy = False
        self.on_text: OnText | None = None
        connection = exchange.connection
        if connection is not None:
            self.on_text = partial(self._text, connection)

    def _text(self, connection: RequestConnection, text: str) -> bool:
        if self._busy or self.complete or not connection.writable:
            return False
        data = self._chunks.text(text)
        if data is None:
            return False
        connection.write(data)
        self._written += 1
        return True

    async def write(self, prompt: int, delta: GenerateDelta) -> None:
        data = self._chunks.write(prompt, delta)
        self._written += 1
        # What waits here for a slow client comes before any text that follows.
        self._busy = True
        if not self._exchange.status:
            _tell_route(self._exchange, delta)
            await self._start()
        if self._chunks.complete:
            self.complete = True
            await self._send({"type": "http.response.body", "body": data})
        elif data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._busy = False

    async def fail(self, error: ServingError) -> None:
        if self.complete:
            return
        self.complete = True
        if self._exchange.status:
            await self._send(
                {"type": "http.response.body", "body": self._chunks.error_event(error)}
            )
        else:
            headers = error_headers(error, self._retry_after_s)
            body = self._chunks.error_body(error)
            await send_whole(self._exchange, error.http_status, body, headers)

    def begin(self) -> None:
        """Send comments from now on when it is silent: clients skip them and proxies count them."""
        if self._silence_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._silence_s, self._beat)

    def close(self) -> None:
        """Send none any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _beat(self) -> None:
        if self._written == self._seen and not self._busy and not self.complete:
            self._beating = asyncio.get_running_loop().create_task(self._comment())
        self._seen = self._written
        self.begin()

    async def _comment(self) -> None:
        if not self._exchange.status:
            await self._start()
        await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    async def _start(self) -> None:
        self._exchange.status = 200
        headers = _SSE_HEADERS + self._exchange.headers
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


def as_body(body: Body, config: GatewayConfig) -> _MakeWriter:
    """Answer with one body at the end."""
    return lambda exchange: _BodyWriter(body, exchange, config.retry_after_s)


def as_events(events: Events, config: GatewayConfig) -> _MakeWriter:
    """Answer with server-sent events, starting with the first delta."""
    return lambda exchange: _StreamWriter(events, exchange, config)


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
