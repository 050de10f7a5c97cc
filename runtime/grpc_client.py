"""Calls gRPC services: unary calls and message streams, with errors of our own tree."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from runtime.errors import Cancelled, DeadlineExceeded, ServingError
from runtime.grpc_errors import error_of
from runtime.grpc_tls import channel_credentials
from runtime.rpc import RpcTypes
from runtime.rpc_client import answer_parser, is_serving
from runtime.tls import ClientIdentity, ClientPem, ClientTls

Metadata = Mapping[str, str]
T = TypeVar("T")
# What grpc.aio puts in the place of a call's status when a write fails.
_FAILED_WRITE = "Internal error from Core"
_NOT_CONNECTED = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.TRANSIENT_FAILURE)


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
    `keepalive_s` None sends no pings: servers that are not ours may count them as abuse. With
    ClientTls its files are read here, which raises InvalidConfig when they are wrong; changed ones
    hold from the next connection on. `call_metadata` is asked at each call for what all calls
    carry, such as credentials; a call's own metadata wins.
    """

    def __init__(
        self,
        address: str,
        *,
        rpc_types: RpcTypes,
        keepalive_s: float | None = 10.0,
        tls: ClientTls | ClientIdentity | None = None,
        call_metadata: Callable[[], Metadata] = dict,
    ) -> None:
        self.address = address
        self._rpc_types = rpc_types
        self._call_metadata = call_metadata
        self._options: list[tuple[str, int | str]] = [*channel_args(keepalive_s=keepalive_s)]
        self._files = tls.open() if isinstance(tls, ClientTls) else tls
        self._pem: ClientPem | None = None
        self._unary: dict[tuple[str, str], tuple[Any, Callable[[bytes], Any]]] = {}
        self._channel = self._open()

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
        channel = self._present_channel()
        known = self._unary.get((service, method))
        if known is None:
            start: Any = channel.unary_unary(f"/{service}/{method}")
            known = start, self._parser(service, method)
            self._unary[service, method] = known
        start, parse = known
        call = start(message.SerializeToString(), timeout=timeout_s, metadata=self._pairs(metadata))
        cancels = _cancels()
        try:
            data = await call
        except grpc.aio.AioRpcError as error:
            _raise_if_cancelled_since(cancels)
            raise _end_of(call, error) from None
        return parse(data)

    async def is_serving(self, service: str = "", *, timeout_s: float) -> bool:
        """Whether grpc.health.v1, which needs no key, says so; false without an answer."""
        return await is_serving(self, service, timeout_s)

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
        start: Any = self._present_channel().stream_stream(f"/{service}/{method}")
        call = start(timeout=timeout_s, metadata=self._pairs(metadata))
        return ClientStream(call, self._parser(service, method))

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        await self._channel.close()

    def _open(self) -> grpc.aio.Channel:
        if self._files is None:
            return grpc.aio.insecure_channel(self.address, options=self._options)
        self._pem = pem = self._files.current
        options = self._options
        if pem.server_name is not None:
            options = [*options, ("grpc.ssl_target_name_override", pem.server_name)]
        return grpc.aio.secure_channel(self.address, channel_credentials(pem), options=options)

    def _present_channel(self) -> grpc.aio.Channel:
        """Return the channel; a new one where a new connection is due and files have changed."""
        if (
            self._files is not None
            and self._files.current is not self._pem
            and self._channel.get_state() in _NOT_CONNECTED
        ):
            # Nothing runs on the old one, which closes when its last call lets go of it.
            self._channel = self._open()
            self._unary.clear()
        return self._channel

    def _pairs(self, metadata: Metadata | None) -> tuple[tuple[str, str], ...] | None:
        return tuple({**self._call_metadata(), **(metadata or {})}.items()) or None

    def _parser(self, service: str, method: str) -> Callable[[bytes], Any]:
        return answer_parser(self.address, self._rpc_types, service, method)


class ClientStream:
    """One streaming call: `async with channel.stream(...) as stream`.

    Leaving the block cancels the call if it still runs, connected or not. A consumer that is
    cancelled while it waits for a message cancels the call.
    """

    def __init__(
        self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", parse: Callable[[bytes], Any]
    ) -> None:
        self._call = call
        self._parse = parse
        self._responses: AsyncIterator[bytes] = call.__aiter__()
        self._status: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note_status)
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
                self._raise_end()
        except asyncio.CancelledError:
            self._raise_if_cancelled_here()
            raise
        return {key: value for key, value in headers or () if isinstance(value, str)}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._cancelled:
            raise Cancelled("the call was cancelled")
        cancels = _cancels()
        try:
            data = await anext(self._responses)
        except grpc.aio.AioRpcError as error:
            _raise_if_cancelled_since(cancels)
            status = self._status or error
            if status.code() is grpc.StatusCode.OK:
                raise StopAsyncIteration from None
            raise _end_of(self._call, status) from None
        except asyncio.CancelledError:
            self._raise_if_cancelled_here()
            # grpc has cancelled the call: a later read must not look like its normal end.
            self._cancelled = True
            raise
        return self._parse(data)

    async def aclose(self) -> None:
        """What leaving the block does, for a stream whose block outlives the function."""
        self.cancel()
        await self._tasks.__aexit__(None, None, None)

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
        await self.aclose()

    def _note_status(self, call: Any) -> None:
        """Keep the peer's status: a write that fails because of it overwrites it, grpc#36066."""
        if self._status is None or self._status.details() == _FAILED_WRITE:
            code, details, trailing = map(
                _result, (call.code(), call.details(), call.trailing_metadata())
            )
            self._status = grpc.aio.AioRpcError(
                code, grpc.aio.Metadata(), trailing, details=details
            )

    def _raise_if_cancelled_here(self) -> None:
        task = asyncio.current_task()
        if self._cancelled and not (task is not None and task.cancelling()):
            raise Cancelled("the call was cancelled") from None

    def _raise_end(self) -> None:
        if self._status is not None and self._status.code() is not grpc.StatusCode.OK:
            raise _end_of(self._call, self._status)

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
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            # The call is over; its status reaches the reader.
            self._queue.clear()


def _cancels() -> int:
    """Return how often the current task has been asked to cancel itself."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _raise_if_cancelled_since(cancels: int) -> None:
    """Go on with a cancellation that grpc.aio has swallowed.

    Its own task that begins a call catches it; when the call has failed at the same moment, its
    status is raised in the place of CancelledError.
    """
    if _cancels() > cancels:
        raise asyncio.CancelledError from None


def _result(finished: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that has nothing to wait for."""
    try:
        finished.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finished.close()
    raise AssertionError("the call is not over")


def _end_of(call: Any, error: grpc.aio.AioRpcError) -> ServingError:
    """Return what a failed call ended with.

    When both sides' deadlines pass, the server's may arrive first, and as a cancellation.
    """
    lost = error.details() == _FAILED_WRITE
    if (lost or error.code() is grpc.StatusCode.CANCELLED) and call.time_remaining() == 0:
        return DeadlineExceeded("the deadline passed")
    return error_of(error)
