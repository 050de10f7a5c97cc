"""Calls gRPC services: unary calls and message streams, with errors of our own tree."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError

from runtime.errors import Cancelled, InternalError
from runtime.grpc_errors import error_of

RpcTypes = Callable[[str], Mapping[str, tuple[type, type]]]
Metadata = Mapping[str, str]


def channel_args(*, keepalive_s: float | None) -> list[tuple[str, int]]:
    """Return the C-core arguments of a channel.

    `ping_timeout_ms` beside the keepalive interval is what notices a frozen peer in seconds:
    `keepalive_timeout_ms` alone leaves it at a minute.
    """
    args = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also the time one connection attempt may take: 20 s by default.
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Retries are decided where the request's state is known.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if keepalive_s is not None:
        args += [
            ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 3000),
            ("grpc.http2.ping_timeout_ms", 3000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return args


class RpcChannel:
    """A connection to one address, opened when first used and again after it broke.

    A call on a broken connection fails at once with UNAVAILABLE (WorkerLost); nothing is retried.
    `keepalive_s` None sends no pings: servers that are not ours may count them as abuse.
    """

    def __init__(
        self, address: str, *, rpc_types: RpcTypes, keepalive_s: float | None = 10.0
    ) -> None:
        self.address = address
        self._rpc_types = rpc_types
        self._channel = grpc.aio.insecure_channel(
            address, options=channel_args(keepalive_s=keepalive_s)
        )
        self._unary: dict[tuple[str, str], tuple[Any, Callable[[bytes], Any]]] = {}

    async def unary(
        self,
        service: str,
        method: str,
        message: Any,
        *,
        timeout_s: float | None,
        metadata: Metadata | None = None,
    ) -> Any:
        """Call a unary method and return its response; raises ServingError."""
        known = self._unary.get((service, method))
        if known is None:
            start: Any = self._channel.unary_unary(f"/{service}/{method}")
            known = start, self._parser(service, method)
            self._unary[service, method] = known
        start, parse = known
        try:
            data = await start(
                message.SerializeToString(), timeout=timeout_s, metadata=_pairs(metadata)
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        return parse(data)

    def stream(
        self,
        service: str,
        method: str,
        *,
        metadata: Metadata | None = None,
        timeout_s: float | None = None,
    ) -> "ClientStream":
        """Open a streaming call; use it as an async context manager.

        Serves unary-stream methods too: send the one request, then `half_close`.
        """
        start: Any = self._channel.stream_stream(f"/{service}/{method}")
        call = start(timeout=timeout_s, metadata=_pairs(metadata))
        return ClientStream(call, self._parser(service, method))

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        await self._channel.close()

    def _parser(self, service: str, method: str) -> Callable[[bytes], Any]:
        response_class: Any = self._rpc_types(service)[method][1]

        def parse(data: bytes) -> Any:
            try:
                return response_class.FromString(data)
            except DecodeError as error:
                raise InternalError(f"{self.address} answered bytes that are no message") from error

        return parse


class ClientStream:
    """One streaming call: `async with channel.stream(...) as stream`.

    Leaving the block cancels the call if it still runs and waits for the writer. A consumer that
    is cancelled while it waits for a message cancels the call.
    """

    def __init__(
        self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", parse: Callable[[bytes], Any]
    ) -> None:
        self._call = call
        self._parse = parse
        self._responses: AsyncIterator[bytes] = call.__aiter__()
        self._tasks = asyncio.TaskGroup()
        self._queue: deque[bytes] = deque()
        self._half_closed = False
        self._cancelled = False
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    def send(self, message: Any) -> None:
        """Queue one request message (a protobuf message, or its bytes); never blocks."""
        if self._half_closed or self._cancelled:
            return
        self._queue.append(message if isinstance(message, bytes) else message.SerializeToString())
        self._wake()

    def half_close(self) -> None:
        """Say that no more requests follow what was sent."""
        self._half_closed = True
        self._wake()

    def cancel(self) -> None:
        """End the call now; a consumer gets Cancelled."""
        self._cancelled = True
        self._call.cancel()
        # A write waits for the connection, and in grpc.aio goes on waiting when the call is over.
        if self._writer is not None:
            self._writer.cancel()

    async def initial_metadata(self) -> dict[str, str]:
        """Wait for the response headers; raises ServingError if the call failed without any."""
        try:
            headers = await self._call.initial_metadata()
            if not headers and self._call.done():
                await self._raise_end()
        except asyncio.CancelledError:
            self._raise_if_cancelled_here()
            raise
        return {key: value for key, value in headers or () if isinstance(value, str)}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._cancelled:
            raise Cancelled("the call was cancelled")
        try:
            data = await anext(self._responses)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        except asyncio.CancelledError:
            self._raise_if_cancelled_here()
            # grpc has cancelled the call: a later read must not look like its normal end.
            self._cancelled = True
            raise
        return self._parse(data)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._writer = self._tasks.create_task(self._write())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()
        await self._tasks.__aexit__(None, None, None)

    def _raise_if_cancelled_here(self) -> None:
        task = asyncio.current_task()
        if self._cancelled and not (task is not None and task.cancelling()):
            raise Cancelled("the call was cancelled") from None

    async def _raise_end(self) -> None:
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            trailing = await self._call.trailing_metadata()
            details = await self._call.details()
            raise error_of(
                grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)
            )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        self._call.add_done_callback(lambda _: self._wake())
        try:
            while not self._call.done():
                while self._queue:
                    await self._call.write(self._queue.popleft())
                if self._half_closed:
                    await self._call.done_writing()
                    return
                self._waiter = loop.create_future()
                await self._waiter
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call is over; its status reaches the reader.
            self._queue.clear()


def _pairs(metadata: Metadata | None) -> tuple[tuple[str, str], ...] | None:
    return tuple(metadata.items()) if metadata else None
