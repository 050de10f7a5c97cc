"""A gRPC server on one port, without C-core."""

import asyncio
import socket
from collections.abc import Sequence

from google.protobuf.descriptor_pool import DescriptorPool

from runtime.access import Access
from runtime.errors import InvalidConfig
from runtime.grpc_options import GrpcOptions
from runtime.rpc import RpcTypes, Service
from runtime.rpc_calls import CONNECTIONS
from runtime.rpc_server import all_services, health_of
from runtime.tls import RotatingContext, ServerIdentity
from transport.dispatch import Dispatch
from transport.server_protocol import ServerProtocol, limits_of

_STOP_GRACE_S = 2.0
_BACKLOG = 4096
_UNIX = "unix:"


class NativeServer:
    """Does what runtime.grpc_server.GrpcServer does, and costs less.

    `host` is a name, an address, or `unix:` and the path of a socket, which has no port.
    """

    def __init__(
        self,
        *,
        services: Sequence[Service],
        rpc_types: RpcTypes,
        pool: DescriptorPool,
        host: str,
        port: int,
        options: GrpcOptions | None = None,
        tls: ServerIdentity | None = None,
        access: Access | None = None,
    ) -> None:
        self._options = options or GrpcOptions()
        self._tls = tls
        self._host, self._port = host, port
        self._limits = limits_of(self._options)
        self._dispatch = Dispatch(self._options, access)
        self._health = health_of(services)
        for service, types in all_services(services, rpc_types, self._health, pool):
            self._dispatch.add(service, types)
        self._connections: set[ServerProtocol] = set()
        self._listener: asyncio.Server | None = None
        self._closed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Number of rpcs that have not ended, health and reflection included."""
        return self._dispatch.in_flight.count

    async def start(self) -> str:
        """Listen; returns "host:port" with the real port. Raises InvalidConfig if it is taken."""
        loop = asyncio.get_running_loop()
        context = None if self._tls is None else RotatingContext(self._tls, http2=True)
        timeout_s = None if self._tls is None else self._options.handshake_timeout_s
        try:
            if self._host.startswith(_UNIX):
                self._listener = await loop.create_unix_server(
                    self._protocol,
                    self._host.removeprefix(_UNIX),
                    backlog=_BACKLOG,
                    ssl=context,
                    ssl_handshake_timeout=timeout_s,
                )
                return self._host
            listening = self._bind()
        except OSError as error:
            raise InvalidConfig(
                f"cannot listen on {self._host}:{self._port} for gRPC: {error.strerror or error}",
                param="grpc_port",
            ) from None
        self._listener = await loop.create_server(
            self._protocol,
            sock=listening,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=timeout_s,
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{listening.getsockname()[1]}"

    def set_serving(self, service: str, serving: bool) -> None:
        """Set a grpc.health.v1 status; "" is the whole server."""
        self._health.set_serving(service, serving)

    async def refuse_new(self, limit_s: float) -> None:
        """Close the port to new rpcs and let the running ones go on; `stop` must follow.

        Clients are told (GOAWAY) and go elsewhere. Returns when no rpc runs, or after `limit_s`
        seconds, when those that are left are cancelled.
        """
        if self._listener is None:
            return
        self._listener.close()
        for connection in tuple(self._connections):
            connection.drain()
        if not await self._dispatch.in_flight.wait_zero(limit_s):
            self._stop_calls()

    async def stop(self, drain_s: float) -> None:
        """Refuse new rpcs, give running ones `drain_s` seconds, then end them.

        Returns when every handler has run its `finally`. Idempotent.
        """
        self._health.close()
        if self._listener is None:
            return
        await self.refuse_new(drain_s)
        self._listener = None
        await self._dispatch.in_flight.wait_zero(_STOP_GRACE_S)
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout(_STOP_GRACE_S):
                while self._connections:
                    self._closed.clear()
                    await self._closed.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()
        await self._dispatch.in_flight.wait_zero(None)

    def _stop_calls(self) -> None:
        for connection in tuple(self._connections):
            connection.stop_calls()

    def _protocol(self) -> ServerProtocol:
        return ServerProtocol(
            self._dispatch, self._options, self._limits, self._remember, self._forget
        )

    def _remember(self, connection: ServerProtocol) -> None:
        self._connections.add(connection)
        CONNECTIONS.inc()

    def _forget(self, connection: ServerProtocol) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            CONNECTIONS.dec()
        self._closed.set()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Accepted sockets inherit it: an answer must not wait for the one before to be acked.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._options.share_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            else:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._host, self._port))
            listening.setblocking(False)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening
