"""Drives `runtime.rpc` services over grpc.aio. Knows no service but health and reflection."""

import asyncio
from collections.abc import Sequence

import grpc
from google.protobuf.descriptor_pool import DescriptorPool

from runtime.access import Access
from runtime.errors import InvalidConfig
from runtime.grpc_dispatch import Dispatch
from runtime.grpc_options import GrpcOptions
from runtime.grpc_tls import server_credentials
from runtime.rpc import RpcTypes, Service
from runtime.rpc_server import all_services, health_of
from runtime.tls import ServerIdentity

_STOP_GRACE_S = 2.0


class GrpcServer:
    """A gRPC server on one port: the given services, grpc.health.v1 and reflection.

    Every service and "" start as NOT_SERVING. Bytes that are no message are INVALID_ARGUMENT; an
    error of runtime/errors.py becomes its status with `penstock-reason` and `penstock-param` in
    the trailing metadata; any other exception is logged and becomes INTERNAL with a fixed text.
    With `tls` nothing else than TLS is spoken; with `access` every call but those of health needs
    a key that it knows.
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
        self._dispatch = Dispatch(
            max_metadata_bytes=self._options.max_metadata_bytes, access=access
        )
        self._health = health_of(services)
        self._handlers = [
            self._dispatch.generic_handler(service, types)
            for service, types in all_services(services, rpc_types, self._health, pool)
        ]
        self._server: grpc.aio.Server | None = None

    @property
    def in_flight(self) -> int:
        """Number of rpcs whose handlers have not returned, health and reflection included."""
        return self._dispatch.in_flight.count

    async def start(self) -> str:
        """Listen; returns "host:port" with the real port. Raises InvalidConfig if it is taken."""
        self._server = grpc.aio.server(
            handlers=self._handlers, options=self._options.channel_args()
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._port}"
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise InvalidConfig(
                f"cannot listen on {address} for gRPC: is the port in use?",
                param="grpc_port",
            ) from error
        await self._server.start()
        return f"{host}:{port}"

    def set_serving(self, service: str, serving: bool) -> None:
        """Set a grpc.health.v1 status; "" is the whole server."""
        self._health.set_serving(service, serving)

    async def refuse_new(self, limit_s: float) -> None:
        """Close the port to new rpcs and let the running ones go on; `stop` must follow.

        Clients are told (GOAWAY) and go elsewhere. Returns when no rpc runs, or after `limit_s`
        seconds, when those that are left are cancelled.
        """
        if self._server is not None:
            await self._server.stop(limit_s)

    async def stop(self, drain_s: float) -> None:
        """Refuse new rpcs, give running ones `drain_s` seconds, then end them.

        Returns when every handler has run its `finally`. Idempotent.
        """
        self._health.close()
        server, self._server = self._server, None
        if server is None:
            return
        async with asyncio.TaskGroup() as tasks:
            # grpc's own wait is only the latest end: it returns before handlers' `finally`.
            tasks.create_task(server.stop(drain_s + _STOP_GRACE_S))
            idle = await self._dispatch.in_flight.wait_zero(drain_s)
            if not idle:
                self._dispatch.stop_streams()
                idle = await self._dispatch.in_flight.wait_zero(_STOP_GRACE_S / 2)
            # An idle server may still be sending the last statuses.
            await server.stop(_STOP_GRACE_S / 2 if idle else None)
        await self._dispatch.in_flight.wait_zero(None)
