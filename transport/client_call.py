"""One call on the client's side, in bytes."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote

from runtime.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InternalError,
    ServingError,
    from_status,
)
from runtime.rpc_status import error_of_status
from transport.codes import ErrorCode
from transport.grpc_codec import IDENTITY, MessageReader, pack_message, read_metadata
from transport.header_blocks import Headers

# grpc/doc/http-grpc-status-mapping.md; PROTOCOL-HTTP2.md, Errors.
_OF_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_OF_RESET = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class ClientLink(Protocol):
    """What a call needs of its connection. Calls for a stream that is over do nothing."""

    def send(self, stream_id: int, data: bytes) -> None:
        """Send bytes of the request."""
        ...

    def half_close(self, stream_id: int) -> None:
        """The request is complete."""
        ...

    def consumed(self, stream_id: int, size: int) -> None:
        """So many bytes of the answer have been read."""
        ...

    def reset(self, stream_id: int) -> None:
        """The answer is not wanted any more."""
        ...


class ClientCall:
    """Ends exactly once: with the peer's status, or with an error of this side. One reader."""

    def __init__(self, block: bytes, timeout_s: float | None) -> None:
        self.block = block
        self.error: ServingError | None = None
        self.over = False
        self._headers: dict[str, str] | None = None
        self._encoding = IDENTITY
        self._reader = MessageReader(IDENTITY, -1)
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._unsent: list[bytes] = []
        self._half_closed = False
        self._link: ClientLink | None = None
        self._stream_id = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, timeout_s), self._expire)

    # ------------------------------------------------------------------ the caller's side
    def send(self, data: bytes) -> None:
        """Send one message; it waits for the connection."""
        if self._half_closed or self.over:
            return
        if self._link is None:
            self._unsent.append(pack_message(data))
        else:
            self._link.send(self._stream_id, pack_message(data))

    def half_close(self) -> None:
        """Say that no more messages follow."""
        if not self._half_closed and not self.over:
            self._half_closed = True
            if self._link is not None:
                self._link.half_close(self._stream_id)

    def cancel(self) -> None:
        """End the call now, whatever has come and was not read."""
        self._messages.clear()
        self.fail(Cancelled("the call was cancelled"))

    async def receive(self) -> bytes | None:
        """Return the next message, None at the end; raises the error that ended the call."""
        while not self._messages:
            if self.over:
                if self.error is not None:
                    raise self.error
                return None
            await self._wait()
        message = self._messages.popleft()
        if not self._messages:
            self._give_back()
        return message

    async def headers(self) -> dict[str, str]:
        """Return the answer's headers; raises the error that ended the call before any."""
        while self._headers is None:
            if self.over:
                if self.error is not None:
                    raise self.error
                return {}
            await self._wait()
        return self._headers

    # ------------------------------------------------------------------ the connection's side
    def begin(self, link: ClientLink, stream_id: int) -> None:
        """The request's headers are on their way: so is what was sent meanwhile."""
        self._link, self._stream_id = link, stream_id
        unsent, self._unsent = self._unsent, []
        for data in unsent:
            link.send(stream_id, data)
        if self._half_closed:
            link.half_close(stream_id)

    def on_headers(self, headers: Headers, *, ended: bool) -> None:
        """The answer begins, or is nothing but a status."""
        if ended:
            self._end(headers)
            return
        found = dict(headers)
        status = int(found.get(b":status", b"0"))
        if status != 200:
            self.fail(from_status(_OF_HTTP.get(status, 2), f"the server answers HTTP {status}"))
            return
        self._reader = MessageReader(found.get(b"grpc-encoding", b"identity").decode("latin-1"), -1)
        self._headers = {name: it for name, it in read_metadata(headers) if isinstance(it, str)}
        self._wake()

    def on_data(self, data: bytes, *, ended: bool) -> None:
        """Take bytes of the answer."""
        if self.over:
            return
        self._unread += len(data)
        try:
            self._messages += self._reader.feed(data)
        except ServingError as error:
            self.fail(InternalError(f"the answer cannot be read: {error.message}"))
            return
        if not self._messages:
            # A message that is longer than the window must be able to arrive.
            self._give_back()
        if ended:
            self.fail(InternalError("the answer ended without a status"))
        else:
            self._wake()

    def on_trailers(self, headers: Headers) -> None:
        """The answer is complete."""
        self._end(headers)

    def on_reset(self, code: int) -> None:
        """The server has given the stream up."""
        known = code in ErrorCode.__members__.values()
        status = _OF_RESET.get(ErrorCode(code), Code.INTERNAL) if known else Code.INTERNAL
        self.fail(from_status(int(status), f"the server reset the stream ({code})"))

    def fail(self, error: ServingError) -> None:
        """End the call with an error; what has come can still be read."""
        if not self.over:
            self._close(error)
            if self._link is not None:
                self._link.reset(self._stream_id)

    def _end(self, headers: Headers) -> None:
        if self.over:
            return
        found = {name: value.decode("latin-1") for name, value in headers}
        status = found.get(b"grpc-status", "")
        details = unquote(found.get(b"grpc-message", ""), errors="replace")
        if status == "0":
            self._close(None)
            return
        if not status.isdigit():
            http = found.get(b":status", "200")
            status = str(_OF_HTTP.get(int(http), 2)) if http != "200" else "2"
            details = details or f"the server answers HTTP {http} without a status"
        trailing: Mapping[str, object] = dict(read_metadata(headers))
        self._close(error_of_status(int(status), details or Code(int(status)).name, trailing))

    def _close(self, error: ServingError | None) -> None:
        self.over = True
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed"))

    def _give_back(self) -> None:
        unread, self._unread = self._unread, 0
        if unread and self._link is not None and not self.over:
            self._link.consumed(self._stream_id, unread)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
