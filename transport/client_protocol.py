"""One connection of a client: the asyncio shell around transport.client_connection."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from runtime.errors import Cancelled, ServingError, WorkerLost
from transport.client_call import ClientCall
from transport.client_connection import ClientConnection
from transport.codes import ErrorCode
from transport.connection import Limits
from transport.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoingAway,
    PingAnswered,
    ResponseStarted,
    SettingsAcknowledged,
    StreamReset,
    TrailersReceived,
)

CONNECT_S = 2.0
"""Time for a connection, the server's settings included."""

_ALIVE = b"alive?.."
_ALIVE_S = 3.0
_CLOSE_S = 1.0
LIMITS = Limits(stream_window=4 * 1024 * 1024, connection_window=64 * 1024 * 1024)


class ClientProtocol(asyncio.Protocol):
    """Implements transport.client_call.ClientLink. `on_leave`: it takes no more calls."""

    def __init__(
        self, address: str, keepalive_s: float | None, on_leave: Callable[["ClientProtocol"], None]
    ) -> None:
        self._address = address
        self._keepalive_s = keepalive_s
        self._on_leave = on_leave
        self._connection = ClientConnection(LIMITS)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, ClientCall] = {}
        self._waiting: deque[ClientCall] = deque()
        self._flushes = False
        self._left = False
        self._error: ServingError | None = None
        self._last_read_s = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.closed = self._loop.create_future()

    # ------------------------------------------------------------------ the channel's side
    def begin(self, call: ClientCall) -> None:
        """Start a call, at once or when the server takes more streams."""
        if call.over:
            return
        if not self._connection.takes_more:
            self._waiting.append(call)
            return
        stream_id = self._connection.request(call.block)
        self._calls[stream_id] = call
        call.begin(self, stream_id)
        self._flush_soon()

    def close(self, error: ServingError) -> None:
        """Fail every call and close."""
        self._error = error
        self._fail_all()
        self._hang_up()

    # ------------------------------------------------------------------ ClientLink
    def send(self, stream_id: int, data: bytes) -> None:
        """Send bytes of a request."""
        self._connection.streams.send(stream_id, data)
        self._flush_soon()

    def half_close(self, stream_id: int) -> None:
        """A request is complete."""
        self._connection.streams.half_close(stream_id)
        self._flush_soon()

    def consumed(self, stream_id: int, size: int) -> None:
        """So many bytes of an answer have been read."""
        self._connection.consumed(stream_id, size)
        if self._connection.has_output:
            self._flush_soon()

    def reset(self, stream_id: int) -> None:
        """An answer is not wanted any more."""
        self._connection.streams.reset(stream_id, ErrorCode.CANCEL)
        self._let_go(stream_id)
        self._flush_soon()

    # ------------------------------------------------------------------ asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._last_read_s = self._loop.time()
        self._after("settings", CONNECT_S, self._no_answer)
        if self._keepalive_s is not None:
            self._after("keepalive", self._keepalive_s, self._ask_alive)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and write what follows from it."""
        self._last_read_s = now = self._loop.time()
        self._cancel("dead")
        for event in self._connection.receive(data, now):
            self._handle(event)
        if self._waiting:
            self._begin_waiting()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell every call."""
        self._transport = None
        for name in tuple(self._timers):
            self._cancel(name)
        if self._error is None:
            why = f": {error}" if error else ""
            self._error = WorkerLost(f"the connection to {self._address} was lost{why}")
        self._fail_all()
        if not self.closed.done():
            self.closed.set_result(None)

    # ------------------------------------------------------------------ events
    def _handle(self, event: Event) -> None:
        match event:
            case DataReceived(stream_id, data, ended):
                if (call := self._calls.get(stream_id)) is not None:
                    call.on_data(data, ended=ended)
                    if ended:
                        self._let_go(stream_id)
            case ResponseStarted() | TrailersReceived() | StreamReset():
                if (call := self._calls.get(event.stream_id)) is not None:
                    self._handle_end(call, event)
            case PingAnswered():
                pass
            case SettingsAcknowledged():
                self._cancel("settings")
            case GoingAway():
                self._leave()
            case ConnectionFailed(_, text):
                self.close(WorkerLost(f"{self._address} does not speak HTTP/2: {text}"))
            case _:
                pass

    def _handle_end(
        self, call: ClientCall, event: ResponseStarted | TrailersReceived | StreamReset
    ) -> None:
        match event:
            case ResponseStarted(stream_id, headers, ended):
                call.on_headers(headers, ended=ended)
                if ended:
                    self._let_go(stream_id)
            case TrailersReceived(stream_id, headers):
                call.on_trailers(headers)
                self._let_go(stream_id)
            case StreamReset(stream_id, code):
                call.on_reset(code)
                self._let_go(stream_id)

    def _let_go(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)
        self._begin_waiting()
        if self._left and not self._calls:
            self._hang_up()

    def _begin_waiting(self) -> None:
        while self._waiting and self._connection.takes_more:
            self.begin(self._waiting.popleft())

    def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        self._on_leave(self)
        lost = WorkerLost(f"{self._address} takes no more calls on this connection")
        while self._waiting:
            self._waiting.popleft().fail(lost)
        if not self._calls:
            self._hang_up()

    def _fail_all(self) -> None:
        if not self._left:
            self._left = True
            self._on_leave(self)
        error = self._error or Cancelled("the channel was closed")
        calls, self._calls = self._calls, {}
        for call in (*calls.values(), *self._waiting):
            call.fail(error)
        self._waiting.clear()

    def _hang_up(self) -> None:
        """Close once everything is written."""
        if self._transport is not None and not self._transport.is_closing():
            self._flush()
            self._transport.close()
            # Over TLS the peer has to agree, and may be in no hurry.
            self._after("abort", _CLOSE_S, self._transport.abort)

    # ------------------------------------------------------------------ writing, timers
    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        if self._transport is None or self._transport.is_closing():
            return
        data = self._connection.take()
        if data:
            self._transport.write(data)

    def _after(self, name: str, delay_s: float, then: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.call_later(delay_s, then)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _no_answer(self) -> None:
        self._lose(f"{self._address} took the connection and does not answer")

    def _ask_alive(self) -> None:
        assert self._keepalive_s is not None
        silent_s = self._loop.time() - self._last_read_s
        if silent_s < self._keepalive_s:
            self._after("keepalive", self._keepalive_s - silent_s, self._ask_alive)
            return
        self._after("keepalive", self._keepalive_s, self._ask_alive)
        if "dead" not in self._timers:
            self._connection.ping(_ALIVE)
            self._flush()
            self._after("dead", _ALIVE_S, lambda: self._lose(f"{self._address} answers no ping"))

    def _lose(self, why: str) -> None:
        self._error = WorkerLost(why)
        if self._transport is not None:
            self._transport.abort()
