"""What every transport does at the start and the end of a call."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from runtime.access import Access
from runtime.errors import Code, InvalidRequest, Overloaded

CALLS = Counter("penstock_grpc_calls", "Finished rpcs.", ("method", "code"))
_calls = cache(CALLS.labels)
CALLS_IN_FLIGHT = Gauge("penstock_grpc_calls_in_flight", "Rpcs whose handlers run.")
CONNECTIONS = Gauge(
    "penstock_grpc_connections", "Connections of gRPC clients; 0 with grpcio, which does not tell."
)
REFUSAL_DELAY_S = 0.05
"""Clients on grpc.aio lose a status that comes while they write their first message: grpc#36066."""

Parse = Callable[[bytes], Any]
# RFC 9113 section 6.5.2: what each header field counts beyond its name and value.
_HEADER_OVERHEAD_BYTES = 32


def count_call(method: str, code: Code) -> None:
    """Count the end of a call of `service/name`."""
    _calls(method.rpartition("/")[2], code.name).inc()


def caller_of(
    pairs: Iterable[tuple[str, str | bytes]] | None, access: Access | None, *, max_bytes: int
) -> tuple[dict[str, str], str | None]:
    """Return a call's metadata and its caller. Raises Overloaded or Unauthenticated.

    Values of bytes (names that end in -bin) count, and are not passed on.
    """
    metadata: dict[str, str] = {}
    size = 0
    for key, value in pairs or ():
        size += len(key) + len(value) + _HEADER_OVERHEAD_BYTES
        if isinstance(value, str):
            metadata[key] = f"{metadata[key]},{value}" if key in metadata else value
    if size > max_bytes:
        raise Overloaded(f"request metadata is over {max_bytes} bytes")
    return metadata, None if access is None else access.principal(metadata)


def parser_of(message_class: type) -> Parse:
    """Return what reads a message of this class; it raises InvalidRequest for other bytes."""
    from_string: Parse = message_class.FromString  # type: ignore[attr-defined]
    name = message_class.__name__

    def parse(data: bytes) -> Any:
        try:
            return from_string(data)
        except DecodeError as error:
            raise InvalidRequest(f"the bytes sent are not a {name} message") from error

    return parse
