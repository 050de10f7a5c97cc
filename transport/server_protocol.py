"""One connection of a server: the asyncio shell around transport.connection."""

import asyncio
import random
from collections.abc import Callable
from typing import cast

from runtime.errors import Code
from runtime.grpc_options import GrpcOptions
from runtime.rpc_calls import CALLS_IN_FLIGHT, count_call
from transport.codes import ErrorCode
from transport.connection import Connection, Limits
from transport.dispatch import Dispatch
from transport.events import (
    AnswerSent,
    ConnectionFailed,
    DataReceived,
    Drained,
    Event,
    PingAnswered,
    RequestStarted,
    SettingsAcknowledged,
    StreamReset,
)
from transport.server_call import ServerCall, StreamCall
from transport.shell import Shell
from transport.streams import Streams

# What the kernel has not taken: beyond it answers merge until it has.
_HIGH_BYTES, _LOW_BYTES = 256 * 1024, 64 * 1024
_MUCH_BYTES = 64 * 1024  # of one read
_GOING = b"goaway.."
_GOING_LIMIT_S = 1.0
# C-core strays from the age by a tenth, so that clients of one start do not all come back at once.
_AGE_SPREAD = 0.1
_HEADER_ROOM = 4


def limits_of(options: GrpcOptions) -> Limits:
    """What a connection takes.

    Metadata over the option's limit is refused call by call; the connection ends at several times
    that.
    """
    return Limits(
        max_header_bytes=options.max_metadata_bytes * _HEADER_ROOM + 16 * 1024,
        max_streams=options.max_concurrent_streams or None,
    )


class ServerProtocol(Shell[Connection]):
    """Implements transport.server_call.Link. `on_close` is called once, when it is gone."""

    def __init__(
        self,
        dispatch: Dispatch,
        options: GrpcOptions,
        limits: Limits,
        on_open: Callable[["ServerProtocol"], None],
        on_close: Callable[["ServerProtocol"], None],
    ) -> None:
        self._dispatch = dispatch
        self._options = options
        self._on_open = on_open
        self._on_close = on_close
        super().__init__(Connection(limits))
        self.streams: Streams = self._connection.streams
        self.paused = False
        self._calls: dict[int, ServerCall] = {}
        self._going = False
        self._refusing = False
        self._peer = ""

    # ------------------------------------------------------------------ asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: our settings go out first."""
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            # RFC 9113, section 3.3: TLS means h2 by ALPN.
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_HIGH_BYTES, low=_LOW_BYTES)
        self._peer = _peer_of(transport.get_extra_info("peername"))
        options = self._options
        self._after("handshake", options.handshake_timeout_s, self._no_handshake)
        if options.keepalive_time_s:
            self._keep_alive(options.keepalive_time_s, options.keepalive_timeout_s, self.abort)
        if options.max_connection_age_s:
            spread = 1 + random.uniform(-_AGE_SPREAD, _AGE_SPREAD)
            self._after("age", options.max_connection_age_s * spread, self._grow_old)
        self._on_open(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and write what follows from it."""
        for event in self._connection.receive(data, self._note_read()):
            self._handle(event)
        self.flush()
        transport = self._transport
        if len(data) >= _MUCH_BYTES and transport is not None and not transport.is_closing():
            # The loop reads a socket up to 32 times a turn, 8 MiB in which nobody else gets on.
            transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self.paused = True

    def resume_writing(self) -> None:
        """It takes more: calls send what they have merged."""
        self.paused = False
        for call in tuple(self._calls.values()):
            if isinstance(call, StreamCall):
                call.resume()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell every call."""
        self._transport = None
        self._cancel_all()
        self.streams.forget_all()
        for call in tuple(self._calls.values()):
            call.peer_gone()
        self._on_close(self)

    # ------------------------------------------------------------------ Link
    def flush(self) -> None:
        """Write what was sent."""
        super().flush()
        idle = not self._calls and not len(self.streams)
        if self._refusing and idle and self._transport is not None:
            self._transport.close()

    def began(self, call: ServerCall) -> None:
        """Pass on to the call what comes for its stream."""
        self._calls[call.stream_id] = call
        self._dispatch.in_flight.add()
        CALLS_IN_FLIGHT.inc()

    def ended(self, call: ServerCall, code: Code) -> None:
        """Let go of the call."""
        if self._calls.pop(call.stream_id, None) is None:
            return
        CALLS_IN_FLIGHT.dec()
        count_call(call.info.method, code)
        self._dispatch.in_flight.remove()
        if self._refusing:
            self.flush_soon()

    # ------------------------------------------------------------------ the server's side
    def drain(self) -> None:
        """Send the client elsewhere: what runs goes on, new streams are refused before long."""
        if self._going or self._transport is None:
            return
        self._going = True
        self._connection.announce_end()
        # Its answer tells that the client has seen the announcement: what it began is here.
        self._connection.ping(_GOING)
        self._after("going", _GOING_LIMIT_S, self._refuse_new)
        self.flush()

    def stop_calls(self) -> None:
        """End every call because the server stops."""
        for call in tuple(self._calls.values()):
            call.stop()

    def close(self) -> None:
        """Write what is left and close."""
        if self._transport is not None:
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ events
    def _handle(self, event: Event) -> None:
        match event:
            case RequestStarted(_, _, ended):
                begun = self._dispatch.begin(self, event, self._peer)
                if begun is not None and ended:
                    begun.data(b"", ended=True)
            case DataReceived() | Drained() | AnswerSent() | StreamReset():
                if (call := self._calls.get(event.stream_id)) is not None:
                    _handle_call(call, event)
            case PingAnswered(payload):
                if payload == _GOING and self._going:
                    self._refuse_new()
            case SettingsAcknowledged():
                self._cancel("handshake")
            case ConnectionFailed():
                for call in tuple(self._calls.values()):
                    call.peer_gone()
                self.close()

    # ------------------------------------------------------------------ timers
    def _no_handshake(self) -> None:
        if self._connection.begun:
            self._connection.fail(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged")
            self.close()
            for call in tuple(self._calls.values()):
                call.peer_gone()
        else:
            self.abort()

    def _grow_old(self) -> None:
        self.drain()
        if self._options.max_connection_age_grace_s:
            self._after("grace", self._options.max_connection_age_grace_s, self.abort)

    def _refuse_new(self) -> None:
        self._cancel("going")
        self._connection.refuse_new()
        self._refusing = True
        self.flush()


def _handle_call(
    call: ServerCall, event: DataReceived | Drained | AnswerSent | StreamReset
) -> None:
    match event:
        case DataReceived(_, data, ended):
            call.data(data, ended=ended)
        case Drained():
            call.drained()
        case AnswerSent():
            call.sent()
        case StreamReset():
            call.peer_gone()


def _peer_of(name: object) -> str:
    """As C-core writes it."""
    if isinstance(name, tuple) and len(name) == 2:
        return f"ipv4:{name[0]}:{name[1]}"
    if isinstance(name, tuple):
        return f"ipv6:[{name[0]}]:{name[1]}"
    return "unix:"
