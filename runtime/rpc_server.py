"""A server of runtime.rpc services, as its owner sees it, whatever transport it is."""

from typing import Protocol


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
