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
    ResponseStarted,
    SettingsAcknowledged,
    StreamReset,
    TrailersReceived,
)
from transport.shell import Shell

CONNECT_S = 2.0
"""Time for a connection, the server's settings included."""

_ALIVE_S = 3.0
_CLOSE_S = 1.0
LIMITS = Limits(stream_window=4 * 1024 * 1024, connection_window=64 * 1024 * 1024)


class ClientProtocol(Shell[ClientConnection]):
    """Implements transport.client_call.ClientLink. `on_leave`: it takes no more calls."""

    def __init__(
        self, address: str, keepalive_s: float | None, on_leave: Callable[["ClientProtocol"], None]
    ) -> None:
        self._address = address
        self._keepalive_s = keepalive_s
        self._on_leave = on_leave
        super().__init__(ClientConnection(LIMITS))
        self._calls: dict[int, ClientCall] = {}
        self._waiting: deque[ClientCall] = deque()
        self._left = False
        self._error: ServingError | None = None
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
        self.flush_soon()
        if self._connection.exhausted:
            self._leave()

    def close(self, error: ServingError) -> None:
        """Fail every call and close."""
        self._error = error
        self._fail_all()
        self._hang_up()

    # ------------------------------------------------------------------ ClientLink
    def send(self, stream_id: int, data: bytes) -> None:
        """Send bytes of a request."""
        self._connection.streams.send(stream_id, data)
        self.flush_soon()

    def half_close(self, stream_id: int) -> None:
        """A request is complete."""
        self._connection.streams.half_close(stream_id)
        self.flush_soon()

    def consumed(self, stream_id: int, size: int) -> None:
        """So many bytes of an answer have been read."""
        self._connection.consumed(stream_id, size)
        if self._connection.has_output:
            self.flush_soon()

    def reset(self, stream_id: int) -> None:
        """An answer is not wanted any more."""
        self._connection.streams.reset(stream_id, ErrorCode.CANCEL)
        self._let_go(stream_id)
        self.flush_soon()

    # ------------------------------------------------------------------ asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._after("settings", CONNECT_S, self._no_answer)
        if self._keepalive_s is not None:
            silent = f"{self._address} answers no ping"
            self._keep_alive(self._keepalive_s, _ALIVE_S, lambda: self._lose(silent))
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and write what follows from it."""
        for event in self._connection.receive(data, self._note_read()):
            self._handle(event)
        if self._waiting:
            self._begin_waiting()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell every call."""
        self._transport = None
        self._cancel_all()
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
            self.flush()
            self._transport.close()
            # Over TLS the peer has to agree, and may be in no hurry.
            self._after("abort", _CLOSE_S, self._transport.abort)

    def _no_answer(self) -> None:
        self._lose(f"{self._address} took the connection and does not answer")

    def _lose(self, why: str) -> None:
        self._error = WorkerLost(why)
        if self._transport is not None:
            self._transport.abort()
