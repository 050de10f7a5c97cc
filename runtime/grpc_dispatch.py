"""Turns services into grpc.aio handlers: parsing, error mapping and counting in one place."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from runtime.errors import (
    INTERNAL_TEXT,
    Code,
    InternalError,
    InvalidRequest,
    Overloaded,
    ServingError,
    shown_error,
)
from runtime.grpc_call import GrpcCall
from runtime.grpc_errors import status_of
from runtime.in_flight import InFlight
from runtime.rpc import CallInfo, Service, StreamHandler, UnaryHandler

Context = grpc.aio.ServicerContext
RpcTypes = Mapping[str, tuple[type, type]]
Parse = Callable[[bytes], Any]
T = TypeVar("T")
CALLS = Counter("penstock_grpc_calls", "Finished rpcs.", ("method", "code"))
CALLS_IN_FLIGHT = Gauge("penstock_grpc_calls_in_flight", "Rpcs whose handlers run.")
# RFC 9113 section 6.5.2: what each header field counts beyond its name and value.
_HEADER_OVERHEAD_BYTES = 32


class Dispatch:
    """The rpcs of one server: makes their handlers and knows which of them are running."""

    def __init__(self, *, max_metadata_bytes: int) -> None:
        self._max_metadata_bytes = max_metadata_bytes
        self._calls: set[GrpcCall] = set()
        self.in_flight = InFlight()

    def generic_handler(self, service: Service, types: RpcTypes) -> grpc.GenericRpcHandler:
        """Return the handler of all methods of `service`; others of it are UNIMPLEMENTED."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for name, unary in service.unary.items():
            serve_unary = self._unary(unary, _parser(types[name][0]), f"{service.name}/{name}")
            methods[name] = grpc.unary_unary_rpc_method_handler(serve_unary)
        for name, start in service.streams.items():
            serve_stream = self._stream(start, _parser(types[name][0]), f"{service.name}/{name}")
            methods[name] = grpc.stream_stream_rpc_method_handler(serve_stream)
        return grpc.method_handlers_generic_handler(service.name, methods)

    def stop_streams(self) -> None:
        """End every running streaming call with Draining."""
        for call in tuple(self._calls):
            call.stop()

    def _unary(self, handler: UnaryHandler, parse: Parse, method: str) -> Callable[..., Any]:
        async def answer(data: bytes, context: Context[Any, Any]) -> bytes:
            response = await handler(parse(data), self._info(method, context))
            encoded: bytes = response.SerializeToString()
            return encoded

        async def serve(data: bytes, context: Context[Any, Any]) -> bytes:
            return await self._run(method, context, answer(data, context))

        return serve

    def _stream(self, start: StreamHandler, parse: Parse, method: str) -> Callable[..., Any]:
        async def answer(requests: AsyncIterator[bytes], context: Context[Any, Any]) -> None:
            call = GrpcCall(self._info(method, context), parse)
            self._calls.add(call)
            try:
                await call.run(start, requests, context)
            finally:
                self._calls.discard(call)

        async def serve(requests: AsyncIterator[bytes], context: Context[Any, Any]) -> None:
            await self._run(method, context, answer(requests, context))

        return serve

    async def _run(self, method: str, context: Context[Any, Any], rpc: Awaitable[T]) -> T:
        with self.in_flight.one(), CALLS_IN_FLIGHT.track_inprogress():
            try:
                answer = await rpc
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    _count(method, Code.CANCELLED)
                    raise
                # grpc.aio takes any CancelledError for the peer's and would send no status.
                error: ServingError = InternalError(INTERNAL_TEXT)
            except Exception as caught:  # noqa: BLE001 - the one wrapper that maps all errors
                error = shown_error(caught, where=method)
            else:
                _count(method, Code.OK)
                return answer
            _count(method, error.code)
            try:
                await context.abort(*status_of(error))
            except grpc.aio.InternalError:
                # The peer went away meanwhile, as it does when the deadline passes on both sides.
                # Raised further, grpc.aio would log it as an error of the server's.
                raise asyncio.CancelledError from None
            raise AssertionError("abort raises")

    def _info(self, method: str, context: Context[Any, Any]) -> CallInfo:
        """Read the call's metadata; raises Overloaded when a peer sent more than the limit.

        C-core has this limit too, but a client that never acknowledges SETTINGS gets past it.
        """
        metadata: dict[str, str] = {}
        size = 0
        for key, value in context.invocation_metadata() or ():
            size += len(key) + len(value) + _HEADER_OVERHEAD_BYTES
            if isinstance(value, str):
                metadata[key] = f"{metadata[key]},{value}" if key in metadata else value
        if size > self._max_metadata_bytes:
            raise Overloaded(f"request metadata is over {self._max_metadata_bytes} bytes")
        left_s = context.time_remaining()
        return CallInfo(
            method=method.rpartition("/")[2],
            metadata=metadata,
            deadline_s=None if left_s is None else time.monotonic() + left_s,
            peer=context.peer(),
        )


def _count(method: str, code: Code) -> None:
    CALLS.labels(method.rpartition("/")[2], code.name).inc()


def _parser(message_class: type) -> Parse:
    from_string: Parse = message_class.FromString  # type: ignore[attr-defined]
    name = message_class.__name__

    def parse(data: bytes) -> Any:
        try:
            return from_string(data)
        except DecodeError as error:
            raise InvalidRequest(f"the bytes sent are not a {name} message") from error

    return parse
