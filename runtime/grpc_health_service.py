"""grpc.health.v1.Health as a Service (github.com/grpc/grpc/blob/master/doc/health-checking.md).

Ours and not grpc_health's servicer: that one forgets a service's other watchers when one leaves.
"""

from typing import Any

from grpc_health.v1 import health_pb2

from runtime.errors import Code, ServingError
from runtime.rpc import Call, CallInfo, Service

HEALTH_SERVICE = "grpc.health.v1.Health"
FILE = health_pb2.DESCRIPTOR
RPC_TYPES: dict[str, tuple[type, type]] = {
    "Check": (health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse),
    "Watch": (health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse),
}
_SERVING = int(health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = int(health_pb2.HealthCheckResponse.NOT_SERVING)
_SERVICE_UNKNOWN = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


def check_request(service: str) -> Any:
    """Return the message that asks for a service's state."""
    return health_pb2.HealthCheckRequest(service=service)


def says_serving(answer: Any) -> bool:
    """Whether a Check's answer is SERVING."""
    return bool(answer.status == _SERVING)


class UnknownService(ServingError):
    """No such service on this server."""

    code = Code.NOT_FOUND
    http_status = 404
    reason = "unknown_service"


class Health:
    """Serving states by service name; "" is the whole server. Unknown names are NOT_FOUND."""

    def __init__(self, names: list[str]) -> None:
        self._serving = dict.fromkeys(names, False)
        self._watchers: set[_Watcher] = set()
        self._closed = False
        self.service = Service(
            name=HEALTH_SERVICE,
            unary={"Check": self._check},
            streams={"Watch": self._watch},
            open_to_all=True,
        )

    def set_serving(self, name: str, serving: bool) -> None:
        """Set one state and tell its watchers; after `close` nothing turns serving again."""
        self._serving[name] = serving and not self._closed
        for watcher in self._watchers:
            watcher.show(name, self.status(name))

    def close(self) -> None:
        """Turn every state to NOT_SERVING for good and end the watches with OK."""
        self._closed = True
        for name in self._serving:
            self.set_serving(name, False)
        for watcher in self._watchers:
            watcher.finish()
        self._watchers.clear()

    def status(self, name: str) -> int | None:
        """Return the wire value of a state, or None for an unknown name."""
        serving = self._serving.get(name)
        if serving is None:
            return None
        return _SERVING if serving else _NOT_SERVING

    async def _check(self, request: Any, info: CallInfo) -> Any:
        status = self.status(request.service)
        if status is None:
            raise UnknownService(f"unknown service {request.service!r}", param="service")
        return health_pb2.HealthCheckResponse(status=status)

    def _watch(self, call: Call) -> "_Watcher":
        watcher = _Watcher(self, call)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: "_Watcher") -> None:
        """Forget a watcher whose call has ended."""
        self._watchers.discard(watcher)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed


class _Watcher:
    """One Watch call: the first state at once, then each change."""

    def __init__(self, health: Health, call: Call) -> None:
        self._health = health
        self._call = call
        self._name: str | None = None
        self._shown: int | None = None

    def on_message(self, message: Any) -> None:
        self._name = message.service
        self.show(message.service, self._health.status(message.service))
        if self._health.closed:
            self.finish()

    def show(self, name: str, status: int | None) -> None:
        if name != self._name:
            return
        value = _SERVICE_UNKNOWN if status is None else status
        if value != self._shown:
            self._shown = value
            self._call.send(health_pb2.HealthCheckResponse(status=value))

    def finish(self) -> None:
        self._call.finish()

    def on_half_close(self) -> None:
        pass

    def on_writable(self) -> None:
        pass

    def on_cancel(self) -> None:
        self._health.leave(self)
