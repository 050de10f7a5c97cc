"""Calls gRPC services without C-core: what runtime.grpc_client.RpcChannel does, and costs less."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from runtime.errors import Cancelled, InternalError, ServingError, WorkerLost
from runtime.rpc import RpcTypes
from runtime.rpc_client import answer_parser, is_serving
from runtime.tls import ClientIdentity, ClientPem, ClientTls
from transport.client_call import ClientCall
from transport.client_protocol import CONNECT_S, ClientProtocol
from transport.grpc_codec import ACCEPTED, write_timeout
from transport.header_blocks import encode_headers

Metadata = Mapping[str, str]
_UNIX = "unix:"


class NativeChannel:
    """A connection to one address, opened when first used and again after it broke.

    See runtime.grpc_client.RpcChannel for what its arguments mean and its calls raise.
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
        self._keepalive_s = keepalive_s
        self._call_metadata = call_metadata
        self._files = tls.open() if isinstance(tls, ClientTls) else tls
        if self._files is not None:
            _ = self._files.current  # raises InvalidConfig when they are wrong
        self._blocks: dict[tuple[str, str], bytes] = {}
        self._parsers: dict[tuple[str, str], Callable[[bytes], Any]] = {}
        self._link: ClientProtocol | None = None
        self._links: set[ClientProtocol] = set()
        self._waiting: list[ClientCall] = []
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

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
        call = self._begin(service, method, timeout_s, metadata)
        call.send(message.SerializeToString())
        call.half_close()
        try:
            data = await call.receive()
            end = None if data is None else await call.receive()
        finally:
            call.cancel()  # does nothing to a call that is over
        if data is None or end is not None:
            raise InternalError(f"{self.address} answered a unary call with no one message")
        return self._parser(service, method)(data)

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
    ) -> "NativeStream":
        """Open a streaming call; use it as an async context manager.

        Serves unary-stream methods too: send the one request, then `half_close`.
        """
        call = self._begin(service, method, timeout_s, metadata)
        return NativeStream(call, self._parser(service, method))

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        self._closed = True
        error = Cancelled("the channel was closed")
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._fail_waiting(error)
        for link in tuple(self._links):
            link.close(error)
            await link.closed

    # ------------------------------------------------------------------ calls
    def _begin(
        self, service: str, method: str, timeout_s: float | None, metadata: Metadata | None
    ) -> ClientCall:
        more = [*{**self._call_metadata(), **(metadata or {})}.items()]
        if timeout_s is not None:
            more.append(("grpc-timeout", write_timeout(timeout_s)))
        block = self._block(service, method) + (encode_headers(more) if more else b"")
        call = ClientCall(block, timeout_s)
        if self._closed:
            call.fail(Cancelled("the channel is closed"))
        elif self._link is not None:
            self._link.begin(call)
        else:
            self._waiting.append(call)
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return call

    def _block(self, service: str, method: str) -> bytes:
        block = self._blocks.get((service, method))
        if block is None:
            scheme = "http" if self._files is None else "https"
            block = self._blocks[service, method] = encode_headers(
                [
                    (":method", "POST"),
                    (":scheme", scheme),
                    (":path", f"/{service}/{method}"),
                    (":authority", self._authority()),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                    ("user-agent", "penstock"),
                    ("grpc-accept-encoding", ACCEPTED),
                ]
            )
        return block

    def _authority(self) -> str:
        name = self._files.current.server_name if self._files is not None else None
        return name or ("localhost" if self.address.startswith(_UNIX) else self.address)

    def _parser(self, service: str, method: str) -> Callable[[bytes], Any]:
        known = self._parsers.get((service, method))
        if known is None:
            known = answer_parser(self.address, self._rpc_types, service, method)
            self._parsers[service, method] = known
        return known

    # ------------------------------------------------------------------ the connection
    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                link = await self._open()
        except (OSError, TimeoutError) as error:
            text = str(error) or "it takes too long"
            self._connecting = None
            self._fail_waiting(WorkerLost(f"cannot connect to {self.address}: {text}"))
            return
        self._connecting = None
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            link.begin(call)

    async def _open(self) -> ClientProtocol:
        loop = asyncio.get_running_loop()
        pem: ClientPem | None = None if self._files is None else self._files.current
        context = None if pem is None else pem.http2_context

        def made() -> ClientProtocol:
            return ClientProtocol(self.address, self._keepalive_s, self._forget)

        name = None if pem is None else pem.server_name
        if self.address.startswith(_UNIX):
            path = self.address.removeprefix(_UNIX)
            _, link = await loop.create_unix_connection(
                made, path, ssl=context, server_hostname=name
            )
        else:
            host, _, port = self.address.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
            if not host or not port.isdigit():
                raise OSError(f"{self.address!r} is no HOST:PORT")
            _, link = await loop.create_connection(
                made, host, int(port), ssl=context, server_hostname=name or (pem and host) or None
            )
        self._link = link
        self._links.add(link)
        link.closed.add_done_callback(lambda _: self._links.discard(link))
        return link

    def _forget(self, link: ClientProtocol) -> None:
        """A connection takes no more calls: the next call opens another."""
        if self._link is link:
            self._link = None

    def _fail_waiting(self, error: ServingError) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.fail(error)


class NativeStream:
    """One streaming call: `async with channel.stream(...) as stream`.

    Leaving the block cancels the call if it still runs, connected or not. A consumer that is
    cancelled while it waits for a message cancels the call.
    """

    def __init__(self, call: ClientCall, parse: Callable[[bytes], Any]) -> None:
        self._call = call
        self._parse = parse
        self._cancelled = False

    def send(self, message: Any) -> None:
        """Queue one request message (a protobuf message, or its bytes); never blocks."""
        self._call.send(message if isinstance(message, bytes) else message.SerializeToString())

    def half_close(self) -> None:
        """Say that no more requests follow what was sent."""
        self._call.half_close()

    def cancel(self) -> None:
        """End the call now; a consumer gets Cancelled."""
        self._cancelled = True
        self._call.cancel()

    async def initial_metadata(self) -> dict[str, str]:
        """Wait for the response headers; raises ServingError if the call failed without any."""
        return await self._call.headers()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._cancelled:
            raise Cancelled("the call was cancelled")
        try:
            data = await self._call.receive()
        except asyncio.CancelledError:
            # A later read must not look like the call's normal end.
            self.cancel()
            raise
        if data is None:
            raise StopAsyncIteration
        return self._parse(data)

    async def aclose(self) -> None:
        """What leaving the block does, for a stream whose block outlives the function."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
