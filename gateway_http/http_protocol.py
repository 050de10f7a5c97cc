"""One connection of the HTTP front: uvicorn's protocol, with limits that it has not."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum

import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from gateway_http.errors import error_json
from gateway_http.metrics import CONNECTIONS
from runtime.errors import RequestTimeout

log = logging.getLogger(__name__)

_HEAD_BYTES = 64 * 1024

CONNECTION = "penstock.connection"
"""Extension of the ASGI scope; its `request` is what a RequestConnection offers."""


class RequestConnection:
    """What a request can do with its connection without waiting, and is told of it."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._on_gone: Callable[[], None] | None = None

    @property
    def writable(self) -> bool:
        """Whether the answer is a chunked body, more of it may come, and its client reads."""
        cycle = self._cycle
        return bool(
            cycle.chunked_encoding
            and not cycle.flow.write_paused
            and not cycle.response_complete
            and not cycle.disconnected
        )

    def write(self, body: bytes) -> None:
        """Send a part of a chunked body; only when `writable`."""
        if body:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client has closed its connection, at once if it has already.

        The request's body must have been read.
        """
        if self._cycle.disconnected:
            on_gone()
        else:
            self._on_gone = on_gone
            # A large body has paused it, and a close is noticed by reading only.
            self._cycle.flow.resume_reading()

    def unwatch(self) -> None:
        """Call nobody any more."""
        self._on_gone = None

    def gone(self) -> None:
        """The client has closed the connection."""
        if self._on_gone is not None:
            self._on_gone()


class _Awaited(Enum):
    """What a client owes us, that it must not take for ever to send."""

    HEAD = "request line and headers"
    REST = "rest of a body whose request is answered"


class BoundedProtocol(HttpToolsProtocol):
    """Bounds the request line and headers in size and in time, and a body that nobody reads.

    A head that takes longer than `head_timeout_s` gets 408; so long a silence after connecting is
    closed. What is left of a body after its answer is read, since a client may look at the answer
    only behind it, for `body_timeout_s`. A body that the application reads is the application's
    to bound, and an idle connection between requests is uvicorn's. 0 is no limit.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        *,
        head_timeout_s: float,
        body_timeout_s: float,
    ) -> None:
        super().__init__(config, state, {})
        self._limits_s = {_Awaited.HEAD: head_timeout_s, _Awaited.REST: body_timeout_s}
        self._in_head = True
        self._head_bytes = 0
        self._awaited: _Awaited | None = None
        self._timer: asyncio.TimerHandle | None = None
        # More than one where the client does not wait for an answer before it asks again.
        self._requests: deque[RequestConnection] = deque()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        CONNECTIONS.inc()
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        CONNECTIONS.dec()
        self._unwatch()
        super().connection_lost(exc)
        for request in self._requests:
            request.gone()

    def data_received(self, data: bytes) -> None:
        """Count a head's bytes, and see what is still owed."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        too_large = self._in_head and self._head_bytes > _HEAD_BYTES
        if too_large and not self.transport.is_closing():
            log.warning("refused a request whose headers are over %d bytes", _HEAD_BYTES)
            self.send_400_response("Request headers are too large.")
        self._watch()

    def on_headers_complete(self) -> None:
        """Begin a body."""
        self._in_head = False
        self._head_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            request = RequestConnection(self.cycle)
            self._requests.append(request)
            self.scope["extensions"] = {CONNECTION: {"request": request}}

    def on_message_complete(self) -> None:
        """Begin the next head."""
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See what is still owed."""
        self._requests.popleft()
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Start the clock when a client begins to owe something; stop it when it has sent it."""
        awaited = self._owed()
        if awaited is self._awaited:
            return
        self._unwatch()
        limit_s = self._limits_s[awaited] if awaited is not None else 0
        if limit_s:
            self._awaited = awaited
            self._timer = self.loop.call_later(limit_s, self._give_up)

    def _owed(self) -> _Awaited | None:
        if self.transport.is_closing():
            return None
        first = self.cycle is None
        if not first and not self.cycle.response_complete:
            return None
        if not self._in_head:
            return _Awaited.REST
        return _Awaited.HEAD if first or self._head_bytes else None

    def _unwatch(self) -> None:
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._awaited is _Awaited.HEAD and self._head_bytes:
            self.transport.write(self._too_slow())
        self._unwatch()
        self.transport.close()

    def _too_slow(self) -> bytes:
        limit_s = self._limits_s[_Awaited.HEAD]
        body = error_json(RequestTimeout(f"the request's head did not arrive within {limit_s:g} s"))
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        return b"".join([STATUS_LINE[RequestTimeout.http_status], *lines, b"\r\n", body])
