"""A server of runtime.rpc services, as its owner sees it, whatever transport it is."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from google.protobuf.descriptor_pool import DescriptorPool

from runtime import grpc_health_service, grpc_reflection_service
from runtime.grpc_health_service import Health
from runtime.rpc import MethodTypes, RpcTypes, Service


class RpcServer(Protocol):
    """The given services, grpc.health.v1 and reflection on one port.

    Every service and "" start as NOT_SERVING. Bytes that are no message are INVALID_ARGUMENT; an
    error of runtime/errors.py becomes its status with `penstock-reason` and `penstock-param` in
    the trailing metadata; any other exception is logged and becomes INTERNAL with a fixed text.
    """

    @property
    def in_flight(self) -> int:
        """Number of rpcs whose handlers have not returned, health and reflection included."""
        ...

    async def start(self) -> str:
        """Listen; returns "host:port" with the real port. Raises InvalidConfig if it is taken."""
        ...

    def set_serving(self, service: str, serving: bool) -> None:
        """Set a grpc.health.v1 status; "" is the whole server."""
        ...

    async def refuse_new(self, limit_s: float) -> None:
        """Close the port to new rpcs and let the running ones go on; `stop` must follow.

        Clients are told (GOAWAY) and go elsewhere. Returns when no rpc runs, or after `limit_s`
        seconds, when those that are left are cancelled.
        """
        ...

    async def stop(self, drain_s: float) -> None:
        """Refuse new rpcs, give running ones `drain_s` seconds, then end them.

        Returns when every handler has run its `finally`. Idempotent.
        """
        ...


def health_of(services: Sequence[Service]) -> Health:
    """Return the health of a server of these services, of each and of the whole."""
    return Health(["", *(service.name for service in services)])


def all_services(
    services: Sequence[Service], rpc_types: RpcTypes, health: Health, pool: DescriptorPool
) -> Iterator[tuple[Service, MethodTypes]]:
    """Yield what a server serves with the types of its messages: these, health and reflection."""
    grpc_reflection_service.add_file(pool, grpc_health_service.FILE)
    grpc_reflection_service.add_own_files(pool)
    for service in services:
        yield service, rpc_types(service.name)
    yield health.service, grpc_health_service.RPC_TYPES
    names = [service.name for service in services]
    names += [grpc_health_service.HEALTH_SERVICE, *grpc_reflection_service.SERVICES]
    for reflection in grpc_reflection_service.reflection_services(names, pool):
        yield reflection, grpc_reflection_service.RPC_TYPES
