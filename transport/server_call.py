"""One call on the server's side, from its headers to its trailers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from runtime.errors import (
    INTERNAL_TEXT,
    Cancelled,
    Code,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    ServingError,
    shown_error,
)
from runtime.rpc import CallHandler, CallInfo, StreamHandler, UnaryHandler
from runtime.rpc_calls import Parse
from runtime.rpc_status import status_of
from runtime.turns import own_turn
from transport.grpc_codec import (
    IDENTITY,
    Encoding,
    MessageReader,
    compress,
    pack_message,
    response_headers,
    trailers,
    trailers_only,
)
from transport.streams import Streams

_OK = trailers(Code.OK, "", ())
_LONG_BYTES = 32 * 1024  # of a message: 131,000 numbers, 260 KB, are parsed in 1 ms
_TURN_BYTES = 64 * 1024


class Link(Protocol):
    """What a call needs of its connection."""

    @property
    def streams(self) -> Streams:
        """Where it answers."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the peer reads too slowly to send more."""
        ...

    def flush(self) -> None:
        """Write what was sent."""
        ...

    def flush_soon(self) -> None:
        """Write what is sent in this turn of the event loop."""
        ...

    def began(self, call: "ServerCall") -> None:
        """Pass on to the call what comes for its stream."""
        ...

    def ended(self, call: "ServerCall", code: Code) -> None:
        """Let go of the call: it is over, and its handler has returned."""
        ...


class ServerCall:
    """Reads messages, answers, and ends exactly once. Subclasses say what a message starts."""

    def __init__(
        self, link: Link, stream_id: int, info: CallInfo, reader: MessageReader, encoding: Encoding
    ) -> None:
        self.info = info
        self.stream_id = stream_id
        self._link = link
        self._reader = reader
        self._encoding = encoding
        self._metadata: Mapping[str, str] = {}
        self._headers_sent = False
        self._over = False
        self._code = Code.OK
        self._timer: asyncio.TimerHandle | None = None
        link.began(self)
        if info.deadline_s is not None:
            left_s = max(0.0, info.deadline_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    # ------------------------------------------------------------------ from the connection
    def data(self, data: bytes, *, ended: bool) -> None:
        """Take bytes of the request."""
        try:
            for message in self._reader.feed(data) if data else ():
                if self._over:
                    return
                self._message(message)
            if ended and not self._over:
                if not self._reader.is_between:
                    raise InvalidRequest("the request ends within a message")
                self._half_close()
        except Exception as error:  # noqa: BLE001 - the outermost frame of the handler's code
            self.fail_from_outside(shown_error(error, where=self.info.method))

    def drained(self) -> None:
        """What was queued is on its way."""

    def peer_gone(self) -> None:
        """The stream or its connection is over."""
        if not self._over:
            self._close(Code.CANCELLED)
            self._release()
        self._report()

    def sent(self) -> None:
        """The answer is on its way to its last byte."""
        self._report()

    def stop(self) -> None:
        """End the call because the server stops; what is queued is still sent."""
        self.fail_from_outside(Draining("the server is stopping"))

    def fail_from_outside(self, error: ServingError) -> None:
        """End the call in place of its handler, which is told."""
        if not self._over:
            self._end(error)
            self._release()

    # ------------------------------------------------------------------ for subclasses
    def _message(self, data: bytes) -> None:
        raise NotImplementedError

    def _half_close(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        """Tell the handler that the call is over."""
        raise NotImplementedError

    def _report(self) -> None:
        self._link.ended(self, self._code)

    def _send_headers(self) -> None:
        if not self._headers_sent:
            self._headers_sent = True
            block = response_headers(self._encoding.name, self._metadata)
            self._link.streams.respond(self.stream_id, block)

    def _send(self, message: Any) -> bool:
        """Send one message; returns whether all of it is on its way."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self._send_headers()
        if self._encoding.name == IDENTITY:
            packed = pack_message(data)
        else:
            packed = pack_message(compress(data, self._encoding), compressed=True)
        streams = self._link.streams
        sent = streams.send(self.stream_id, packed)
        if streams.pending < _TURN_BYTES:
            self._link.flush_soon()
        else:
            # So that a handler that produces much sees `writable` turn while it does.
            self._link.flush()
        return sent

    def _end(self, error: ServingError | None) -> None:
        """Send the status, behind all messages."""
        streams = self._link.streams
        if error is None:
            self._send_headers()
            self._close(Code.OK)
            streams.end(self.stream_id, _OK)
        else:
            self._close(error.code)
            write = trailers if self._headers_sent else trailers_only
            streams.end(self.stream_id, write(*status_of(error)))
        self._link.flush_soon()
        if streams.get(self.stream_id) is None:
            self.sent()

    def _close(self, code: Code) -> None:
        self._over = True
        self._code = code
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.fail_from_outside(DeadlineExceeded("the deadline passed"))


class StreamCall(ServerCall):
    """Implements runtime.rpc.Call."""

    _handler: CallHandler | None = None
    _parse: Parse
    _full = False

    def start(self, start: StreamHandler, parse: Parse) -> None:
        """Make the handler."""
        self._parse = parse
        try:
            self._handler = start(self)
        except Exception as error:  # noqa: BLE001 - the outermost frame of the handler's code
            self.fail_from_outside(shown_error(error, where=self.info.method))

    @property
    def writable(self) -> bool:
        """Whether what is sent now leaves now."""
        return not self._full and not self._link.paused

    def set_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set response headers; they leave at once."""
        if not self._headers_sent and not self._over:
            self._metadata = dict(metadata)
            self._send_headers()
            self._link.flush_soon()

    def send(self, message: Any) -> None:
        """Queue one response message (a protobuf message, or its bytes)."""
        if not self._over and not self._send(message):
            self._full = True

    def finish(self) -> None:
        """End the call with OK once everything sent is written."""
        self._handler_ends(None)

    def fail(self, error: ServingError) -> None:
        """End the call with the error's status once everything sent is written."""
        self._handler_ends(error)

    def drained(self) -> None:
        """What was queued is on its way: the handler may send more."""
        self._full = False
        self.resume()

    def resume(self) -> None:
        """The connection takes more."""
        if self._handler is not None and not self._over and self.writable:
            self._guarded(self._handler.on_writable)

    def _handler_ends(self, error: ServingError | None) -> None:
        if not self._over:
            # First of all: `on_cancel` is not for a call that its handler has ended.
            self._handler = None
            self._end(error)

    def _message(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.on_message(self._parse(data))

    def _half_close(self) -> None:
        if self._handler is not None:
            self._handler.on_half_close()

    def _release(self) -> None:
        handler, self._handler = self._handler, None
        if handler is None:
            return
        try:
            handler.on_cancel()
        except Exception as error:  # noqa: BLE001 - the call is over; this can only be logged
            shown_error(error, where=self.info.method)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the outermost frame of the handler's code
            self.fail_from_outside(shown_error(error, where=self.info.method))


class UnaryCall(ServerCall):
    """Runs a coroutine once its one message is there."""

    _handler: UnaryHandler
    _parse: Parse
    _request: bytes | None = None
    _task: asyncio.Task[None] | None = None
    _gone = False

    def start(self, handler: UnaryHandler, parse: Parse) -> None:
        """Say what the message is for."""
        self._handler, self._parse = handler, parse

    def _message(self, data: bytes) -> None:
        if self._request is not None:
            raise InvalidRequest("a unary call takes one message")
        self._request = data

    def _half_close(self) -> None:
        if self._request is None:
            raise InvalidRequest("a unary call takes one message, and none came")
        self._task = asyncio.get_running_loop().create_task(self._run())
        # Not from within: a task that is cancelled before its first step runs no `finally`.
        self._task.add_done_callback(self._returned)

    def _release(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _report(self) -> None:
        # Whoever waits for calls to end waits for their handlers, too.
        self._gone = True
        if self._task is None or self._task.done():
            super()._report()

    def _returned(self, _: "asyncio.Task[None]") -> None:
        if self._gone:
            super()._report()

    async def _parsed(self) -> Any:
        data, self._request = self._request or b"", b""
        if len(data) < _LONG_BYTES:
            return self._parse(data)
        async with own_turn():
            return self._parse(data)

    async def _run(self) -> None:
        try:
            answer = await self._handler(await self._parsed(), self.info)
            if not self._over:
                self._send(answer)
                self._end(None)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self.fail_from_outside(Cancelled("the call was cancelled"))
                raise
            self.fail_from_outside(InternalError(INTERNAL_TEXT))
        except Exception as error:  # noqa: BLE001 - the one wrapper that maps all errors
            self.fail_from_outside(shown_error(error, where=self.info.method))


class RefusedCall(ServerCall):
    """Reads nothing and ends with an error after a while."""

    def end_later(self, error: ServingError, delay_s: float) -> None:
        """Fail after `delay_s`."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self.fail_from_outside, error)

    def data(self, data: bytes, *, ended: bool) -> None:
        """Nothing: what a stranger sends stays unread."""

    def _release(self) -> None:
        """Nothing has begun."""
