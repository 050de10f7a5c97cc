"""Which handler a request is for, and whether it may be called."""

import time
from collections.abc import Mapping

from runtime.access import Access
from runtime.errors import ServingError, Unauthenticated, Unsupported
from runtime.grpc_options import GrpcOptions
from runtime.in_flight import InFlight
from runtime.rpc import CallInfo, MethodTypes, Service, StreamHandler, UnaryHandler
from runtime.rpc_calls import REFUSAL_DELAY_S, Parse, caller_of, parser_of
from runtime.rpc_status import status_of
from transport.events import RequestStarted
from transport.grpc_codec import (
    IDENTITY,
    PLAIN,
    MessageReader,
    chosen_encoding,
    http_error,
    read_metadata,
    read_timeout,
    trailers_only,
)
from transport.header_blocks import as_mapping
from transport.server_call import Link, RefusedCall, ServerCall, StreamCall, UnaryCall


class _Route:
    """One method: its full name, its handler (one of the two), and who may call it."""

    def __init__(
        self,
        method: str,
        parse: Parse,
        access: Access | None,
        *,
        unary: UnaryHandler | None = None,
        stream: StreamHandler | None = None,
    ) -> None:
        self.method = method
        self.parse = parse
        self.access = access
        self.unary = unary
        self.stream = stream


class Dispatch:
    """The methods of one server. `in_flight` counts its calls until their last byte is sent."""

    def __init__(self, options: GrpcOptions, access: Access | None) -> None:
        self._options = options
        self._access = access
        self._routes: dict[bytes, _Route] = {}
        self.in_flight = InFlight()

    def add(self, service: Service, types: MethodTypes) -> None:
        """Serve all methods of a service."""
        access = None if service.open_to_all else self._access
        for name, unary in service.unary.items():
            self._add(service.name, name, types, access, unary=unary)
        for name, stream in service.streams.items():
            self._add(service.name, name, types, access, stream=stream)

    def begin(self, link: Link, request: RequestStarted, peer: str) -> ServerCall | None:
        """Start the call; None when it has been refused already."""
        headers = as_mapping(request.headers)
        streams = link.streams
        if headers[b":method"] != b"POST":
            streams.end(request.stream_id, http_error(405))
            return None
        if not _is_grpc(headers.get(b"content-type", b"")):
            streams.end(request.stream_id, http_error(415))
            return None
        route = self._routes.get(headers[b":path"])
        try:
            if route is None:
                name = headers[b":path"].decode("latin-1")
                raise Unsupported(f"method {name[:200]} is not served here")
            return self._call(link, request, route, headers, peer)
        except ServingError as error:
            streams.end(request.stream_id, trailers_only(*status_of(error)))
            return None

    def _add(
        self,
        service: str,
        name: str,
        types: MethodTypes,
        access: Access | None,
        *,
        unary: UnaryHandler | None = None,
        stream: StreamHandler | None = None,
    ) -> None:
        method = f"{service}/{name}"
        route = _Route(method, parser_of(types[name][0]), access, unary=unary, stream=stream)
        self._routes[f"/{method}".encode()] = route

    def _call(
        self,
        link: Link,
        request: RequestStarted,
        route: _Route,
        headers: Mapping[bytes, bytes],
        peer: str,
    ) -> ServerCall:
        timeout = headers.get(b"grpc-timeout")
        deadline_s = None
        if timeout is not None:
            deadline_s = time.monotonic() + read_timeout(timeout.decode("latin-1"))
        encoding = headers.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1")
        accepted = headers.get(b"grpc-accept-encoding", b"").decode("latin-1")
        reader = MessageReader(encoding, self._options.max_message_bytes)
        answered = chosen_encoding(self._options.compression, accepted)
        most = self._options.max_metadata_bytes
        pairs = read_metadata(request.headers)
        try:
            metadata, principal = caller_of(pairs, route.access, max_bytes=most)
        except Unauthenticated as error:
            info = CallInfo(method=route.method.rpartition("/")[2], peer=peer)
            refused = RefusedCall(link, request.stream_id, info, reader, PLAIN)
            refused.end_later(error, REFUSAL_DELAY_S)
            return refused
        info = CallInfo(
            method=route.method.rpartition("/")[2],
            metadata=metadata,
            deadline_s=deadline_s,
            peer=peer,
            principal=principal,
        )
        made = (link, request.stream_id, info, reader, answered)
        if route.stream is not None:
            stream = StreamCall(*made)
            stream.start(route.stream, route.parse)
            return stream
        assert route.unary is not None
        unary = UnaryCall(*made)
        unary.start(route.unary, route.parse)
        return unary


def _is_grpc(content_type: bytes) -> bool:
    """application/grpc, with a suffix for the messages' form perhaps; not application/grpc-web."""
    return content_type.startswith(b"application/grpc") and content_type[16:17] in b"+;"
