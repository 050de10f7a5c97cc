"""One streaming call on the server's side: `runtime.rpc.Call` over grpc.aio.

The handler's coroutine writes; one task beside it reads. What is sent in one turn of the event
loop is queued here and written message by message as HTTP/2 flow control lets it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from runtime.errors import Draining, ServingError, shown_error
from runtime.rpc import CallHandler, CallInfo, StreamHandler

_HIGH_MESSAGES, _LOW_MESSAGES = 32, 8
_HIGH_BYTES, _LOW_BYTES = 256 * 1024, 64 * 1024


class GrpcCall:
    """Implements runtime.rpc.Call; `run` drives it from start to end.

    Ends exactly once: by the handler (`finish`, `fail`), by an error of ours about its messages,
    or because the peer is gone or the server stops. In the latter cases the handler gets
    `on_cancel`.
    """

    def __init__(self, info: CallInfo, parse: Callable[[bytes], Any]) -> None:
        self.info = info
        self._parse = parse
        self._handler: CallHandler | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._full = False
        self._headers: dict[str, str] | None = None
        self._headers_sent = False
        self._ended = False
        self._handler_done = False
        self._error: ServingError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ runtime.rpc.Call
    @property
    def writable(self) -> bool:
        """Whether the queue is short enough to send more."""
        return not self._full

    def set_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set response headers; they leave at once."""
        if self._headers is None and not self._headers_sent and not self._ended:
            self._headers = dict(metadata)
            self._wake()

    def send(self, message: Any) -> None:
        """Queue one response message (a protobuf message, or its bytes)."""
        if self._ended:
            return
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self._queue.append(data)
        self._queued_bytes += len(data)
        if len(self._queue) >= _HIGH_MESSAGES or self._queued_bytes >= _HIGH_BYTES:
            self._full = True
        self._wake()

    def finish(self) -> None:
        """End the call with OK once everything sent is written."""
        self._end(None)

    def fail(self, error: ServingError) -> None:
        """End the call with the error's status once everything sent is written."""
        self._end(error)

    # ------------------------------------------------------------------ the transport's side
    async def run(
        self,
        start: StreamHandler,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serve the call; raises the error it ended with. Cancelled when the peer is gone."""
        try:
            self._guarded(lambda: self._start(start))
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(requests))
                await self._write(context)
                reader.cancel()
        finally:
            self._cancel_handler()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the call now because the server stops; what is queued is still written."""
        self._fail_from_outside(Draining("the server is stopping"))

    def _start(self, start: StreamHandler) -> None:
        self._handler = start(self)

    def _end(self, error: ServingError | None) -> None:
        self._handler_done = True
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    def _fail_from_outside(self, error: ServingError) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()
            self._cancel_handler()

    def _cancel_handler(self) -> None:
        self._ended = True
        if self._handler is None or self._handler_done:
            return
        self._handler_done = True
        try:
            self._handler.on_cancel()
        except Exception as error:  # noqa: BLE001 - the call is over; this can only be logged
            shown_error(error, where=self.info.method)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the outermost frame of the handler's code
            self._fail_from_outside(shown_error(error, where=self.info.method))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        handler = self._handler
        async for data in requests:
            if handler is None or self._ended:
                return
            self._guarded(lambda data=data: handler.on_message(self._parse(data)))  # type: ignore[misc]
        if handler is not None and not self._ended:
            self._guarded(handler.on_half_close)

    async def _write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._headers is not None:
                headers, self._headers = tuple(self._headers.items()), None
                self._headers_sent = True
                await context.send_initial_metadata(headers)
            while self._queue:
                data = self._queue.popleft()
                self._queued_bytes -= len(data)
                self._headers_sent = True
                await context.write(data)
                if self._full:
                    self._note_drained()
            if self._ended:
                return
            self._waiter = loop.create_future()
            await self._waiter

    def _note_drained(self) -> None:
        if len(self._queue) <= _LOW_MESSAGES and self._queued_bytes <= _LOW_BYTES:
            self._full = False
            if self._handler is not None and not self._ended:
                self._guarded(self._handler.on_writable)
