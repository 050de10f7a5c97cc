"""Turns services into grpc.aio handlers: parsing, error mapping and counting in one place."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from runtime.access import Access
from runtime.errors import (
    INTERNAL_TEXT,
    Code,
    InternalError,
    ServingError,
    shown_error,
)
from runtime.grpc_call import GrpcCall
from runtime.grpc_errors import grpc_status_of
from runtime.in_flight import InFlight
from runtime.rpc import CallInfo, MethodTypes, Service, StreamHandler, UnaryHandler
from runtime.rpc_calls import (
    CALLS_IN_FLIGHT,
    REFUSAL_DELAY_S,
    Parse,
    caller_of,
    count_call,
    parser_of,
)

Context = grpc.aio.ServicerContext
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Method:
    """One rpc: `service/name`, how its messages are read, and who may call it (None: anybody)."""

    name: str
    parse: Parse
    access: Access | None


class Dispatch:
    """The rpcs of one server: makes their handlers and knows which of them are running.

    `access` is asked for the caller at each call, except of services that are open to all.
    """

    def __init__(self, *, max_metadata_bytes: int, access: Access | None = None) -> None:
        self._max_metadata_bytes = max_metadata_bytes
        self._access = access
        self._calls: set[GrpcCall] = set()
        self.in_flight = InFlight()

    def generic_handler(self, service: Service, types: MethodTypes) -> grpc.GenericRpcHandler:
        """Return the handler of all methods of `service`; others of it are UNIMPLEMENTED."""
        access = None if service.open_to_all else self._access
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for name, unary in service.unary.items():
            method = _Method(f"{service.name}/{name}", parser_of(types[name][0]), access)
            methods[name] = grpc.unary_unary_rpc_method_handler(self._unary(unary, method))
        for name, start in service.streams.items():
            method = _Method(f"{service.name}/{name}", parser_of(types[name][0]), access)
            methods[name] = grpc.stream_stream_rpc_method_handler(self._stream(start, method))
        handler = grpc.method_handlers_generic_handler(service.name, methods)
        return handler if access is None else _Guarded(handler, self, access)

    def stop_streams(self) -> None:
        """End every running streaming call with Draining."""
        for call in tuple(self._calls):
            call.stop()

    def caller(self, pairs: Any, access: Access | None) -> tuple[dict[str, str], str | None]:
        """Return a call's metadata and its caller. Raises Overloaded or Unauthenticated.

        C-core has a limit for metadata too, but a client that never acknowledges SETTINGS gets
        past it.
        """
        return caller_of(pairs, access, max_bytes=self._max_metadata_bytes)

    def refusal(self, method: str, error: ServingError) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return a handler that ends a call with `error` and reads none of its messages."""

        async def fail() -> None:
            await asyncio.sleep(REFUSAL_DELAY_S)
            raise error

        async def serve(_: AsyncIterator[bytes], context: Context[Any, Any]) -> None:
            await self._run(method, context, fail())

        return grpc.stream_stream_rpc_method_handler(serve)

    def _unary(self, handler: UnaryHandler, method: _Method) -> Callable[..., Any]:
        async def answer(data: bytes, context: Context[Any, Any]) -> bytes:
            info = self._info(method, context)
            response = await handler(method.parse(data), info)
            encoded: bytes = response.SerializeToString()
            return encoded

        async def serve(data: bytes, context: Context[Any, Any]) -> bytes:
            return await self._run(method.name, context, answer(data, context))

        return serve

    def _stream(self, start: StreamHandler, method: _Method) -> Callable[..., Any]:
        async def answer(requests: AsyncIterator[bytes], context: Context[Any, Any]) -> None:
            call = GrpcCall(self._info(method, context), method.parse)
            self._calls.add(call)
            try:
                await call.run(start, requests, context)
            finally:
                self._calls.discard(call)

        async def serve(requests: AsyncIterator[bytes], context: Context[Any, Any]) -> None:
            await self._run(method.name, context, answer(requests, context))

        return serve

    async def _run(self, method: str, context: Context[Any, Any], rpc: Awaitable[T]) -> T:
        with self.in_flight.one(), CALLS_IN_FLIGHT.track_inprogress():
            try:
                answer = await rpc
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    count_call(method, Code.CANCELLED)
                    raise
                # grpc.aio takes any CancelledError for the peer's and would send no status.
                error: ServingError = InternalError(INTERNAL_TEXT)
            except Exception as caught:  # noqa: BLE001 - the one wrapper that maps all errors
                error = shown_error(caught, where=method)
            else:
                count_call(method, Code.OK)
                return answer
            count_call(method, error.code)
            try:
                await context.abort(*grpc_status_of(error))
            except grpc.aio.InternalError:
                # The peer went away meanwhile, as it does when the deadline passes on both sides.
                # Raised further, grpc.aio would log it as an error of the server's.
                raise asyncio.CancelledError from None
            raise AssertionError("abort raises")

    def _info(self, method: _Method, context: Context[Any, Any]) -> CallInfo:
        metadata, principal = self.caller(context.invocation_metadata(), method.access)
        left_s = context.time_remaining()
        return CallInfo(
            method=method.name.rpartition("/")[2],
            metadata=metadata,
            deadline_s=None if left_s is None else time.monotonic() + left_s,
            peer=context.peer(),
            principal=principal,
        )


class _Guarded(grpc.GenericRpcHandler):
    """Asks for the caller before any message is read: what a stranger sends stays unread."""

    def __init__(self, methods: grpc.GenericRpcHandler, dispatch: Dispatch, access: Access) -> None:
        self._methods = methods
        self._dispatch = dispatch
        self._access = access

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = self._methods.service(handler_call_details)
        if handler is None:
            return None
        try:
            self._dispatch.caller(handler_call_details.invocation_metadata, self._access)
        except ServingError as error:
            return self._dispatch.refusal(handler_call_details.method.lstrip("/"), error)
        return handler
