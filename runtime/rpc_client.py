"""Calls to other servers, as services see them, whatever transport carries them."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from google.protobuf.message import DecodeError

from runtime.errors import InternalError, ServingError
from runtime.grpc_health_service import HEALTH_SERVICE, RPC_TYPES, check_request, says_serving
from runtime.rpc import RpcTypes


class RpcStream(Protocol):
    """One streaming call: `async with channel.stream(...) as stream`, then iterate the answers.

    Leaving the block cancels the call if it still runs. Iterating raises the ServingError that
    ended it.
    """

    def send(self, message: Any) -> None:
        """Queue one request message (a protobuf message, or its bytes); never blocks."""
        ...

    def half_close(self) -> None:
        """Say that no more requests follow what was sent."""
        ...

    def cancel(self) -> None:
        """End the call now; a consumer gets Cancelled."""
        ...

    async def initial_metadata(self) -> dict[str, str]:
        """Wait for the response headers; raises ServingError if the call failed without any."""
        ...

    async def aclose(self) -> None:
        """What leaving the block does."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Any: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class RpcCaller(Protocol):
    """A connection to one address, opened when first used and again after it broke."""

    address: str

    async def unary(
        self,
        service: str,
        method: str,
        message: Any,
        *,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Call a unary method and return its response; raises ServingError."""
        ...

    async def is_serving(self, service: str = "", *, timeout_s: float) -> bool:
        """Whether grpc.health.v1 says so; false without an answer."""
        ...

    def stream(
        self,
        service: str,
        method: str,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> RpcStream:
        """Open a streaming call."""
        ...

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        ...


async def is_serving(channel: RpcCaller, service: str, timeout_s: float) -> bool:
    """Whether grpc.health.v1, which needs no key, says so; false without an answer."""
    request = check_request(service)
    try:
        answer = await channel.unary(HEALTH_SERVICE, "Check", request, timeout_s=timeout_s)
    except ServingError:
        return False
    return says_serving(answer)


def answer_parser(
    address: str, rpc_types: RpcTypes, service: str, method: str
) -> Callable[[bytes], Any]:
    """Return what reads a method's answers; it raises InternalError for other bytes."""
    types = RPC_TYPES if service == HEALTH_SERVICE else rpc_types(service)
    response_class: Any = types[method][1]

    def parse(data: bytes) -> Any:
        try:
            return response_class.FromString(data)
        except DecodeError as error:
            raise InternalError(f"{address} answered bytes that are no message") from error

    return parse
