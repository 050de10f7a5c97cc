"""One rpc as a service sees it, whatever transport carries it.

A service is two tables of handlers. Handlers get decoded messages and never see a transport type,
so that more than one transport can drive them. Everything runs on the process's one event loop.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from runtime.errors import ServingError

MethodTypes = Mapping[str, tuple[type, type]]
"""The request and response messages of each method of a service."""
RpcTypes = Callable[[str], MethodTypes]
"""Return them for a service's full name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """What came with a call: lower-case metadata, and the deadline in `time.monotonic` seconds.

    `principal` names the caller where keys are demanded, else it is None.
    """

    method: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float | None = None
    peer: str = ""
    principal: str | None = None


class Call(Protocol):
    """The answering side of one streaming rpc.

    `send` never blocks: what the peer is too slow to take is queued. A handler that produces more
    than it must looks at `writable` first and merges until `on_writable` comes, so that the queue
    stays short. `finish` and `fail` end the call after what was sent; later calls do nothing.
    """

    info: CallInfo

    @property
    def writable(self) -> bool:
        """Whether the queue is short enough to send more."""
        ...

    def set_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set response headers; only before the first `send`."""
        ...

    def send(self, message: Any) -> None:
        """Queue one response message."""
        ...

    def finish(self) -> None:
        """End the call with OK once everything sent is written."""
        ...

    def fail(self, error: ServingError) -> None:
        """End the call with the error's status once everything sent is written."""
        ...


class CallHandler(Protocol):
    """The receiving side of one streaming rpc; every method is called on the event loop.

    `on_cancel` comes exactly once for a call that its handler has not ended by `finish` or `fail`:
    the peer is gone, the deadline has passed, the server stops, or a message ended the call (bytes
    that are no message, or an exception raised from a method here, which becomes the call's
    status). After it nothing else is called and `send` does nothing. When the peer is gone,
    `on_half_close` may come just before `on_cancel`: transports cannot always tell the two apart.
    """

    def on_message(self, message: Any) -> None:
        """Take one request message."""
        ...

    def on_half_close(self) -> None:
        """The peer will send no more."""
        ...

    def on_writable(self) -> None:
        """The queue has drained: send what was merged meanwhile."""
        ...

    def on_cancel(self) -> None:
        """Release everything this call holds."""
        ...


UnaryHandler = Callable[[Any, CallInfo], Awaitable[Any]]
StreamHandler = Callable[[Call], CallHandler]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One gRPC service: its full name and its handlers. A method in neither is UNIMPLEMENTED.

    A unary handler is a coroutine function (message, info) -> message; it is cancelled when the
    peer goes away. Streaming handlers serve stream-stream methods. `open_to_all` services answer
    callers without a key also where keys are demanded.
    """

    name: str
    unary: Mapping[str, UnaryHandler] = field(default_factory=dict)
    streams: Mapping[str, StreamHandler] = field(default_factory=dict)
    open_to_all: bool = False
