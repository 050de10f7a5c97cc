"""One HTTP request from the outside: its id, its answer's common headers, its counters."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from functools import cache

from starlette.types import Message, Receive, Scope, Send

from gateway_http import metrics
from gateway_http.cross_origin import CrossOrigin
from gateway_http.endpoints import EndpointApp
from gateway_http.entrance import admit
from gateway_http.errors import error_response
from gateway_http.http_protocol import CONNECTION, RequestConnection
from runtime.access import Access
from runtime.errors import Unauthenticated

log = logging.getLogger(__name__)

EXCHANGE = "penstock.exchange"
CLIENT_GONE = 499

_requests = cache(metrics.REQUESTS.labels)
_duration = cache(metrics.DURATION.labels)

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:/=+@-]{1,128}")


class Exchange:
    """What the layers of one request share. `send` is the server's own, without layers between.

    `connection` is the server's extension, if it has it.

    `endpoint` is the path of a generation that has not been handed to the backend: until then
    nobody else accounts for it.
    """

    __slots__ = (
        "connection", "endpoint", "headers", "principal", "request_id", "send", "started_s",
        "status", "told_route",
    )  # fmt: skip

    def __init__(self, send: Send, request_id: str, common: list[tuple[bytes, bytes]]) -> None:
        self.send = send
        self.request_id = request_id
        self.headers = [(b"x-request-id", request_id.encode()), *common]
        self.principal: str | None = None
        self.status = 0
        self.started_s = time.monotonic()
        self.endpoint = ""
        self.told_route = False
        self.connection: RequestConnection | None = None


def request_id_of(scope: Scope) -> str:
    """The client's x-request-id if it is a plain token of at most 128 bytes, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


class GatewayApp(EndpointApp):
    """Endpoints with the exchange around each request, and a look at its key before all else."""

    common_headers: list[tuple[bytes, bytes]]
    access: Access | None = None
    cross_origin: CrossOrigin | None = None
    further_paths: Mapping[str, str] = {}

    def set_common_headers(self, headers: Mapping[str, str]) -> None:
        """Send these with every answer."""
        self.common_headers = [
            (name.lower().encode(), value.encode()) for name, value in headers.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["path"] in self.further_paths:
            scope["path"] = self.further_paths[scope["path"]]
            scope["raw_path"] = scope["path"].encode()
        exchange = Exchange(send, request_id_of(scope), self.common_headers)
        exchange.connection = scope.get("extensions", {}).get(CONNECTION, {}).get("request")
        scope[EXCHANGE] = exchange
        if self.cross_origin is not None:
            exchange.headers += self.cross_origin.headers(scope)

        async def outer_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *exchange.headers]
            await send(message)

        metrics.IN_FLIGHT.inc()
        try:
            await self._serve(scope, receive, outer_send, exchange)
        except asyncio.CancelledError:
            # The server stops. What has been answered with an error needs no trace in the log.
            if not exchange.status:
                raise
        except Exception:
            # Starlette answers with 500 first and then raises again.
            log.exception("request %s failed", exchange.request_id)
        finally:
            metrics.IN_FLIGHT.dec()
            _record(scope, exchange)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        asked = self.cross_origin.preflight(scope) if self.cross_origin is not None else None
        if asked is not None:
            exchange.headers = exchange.headers[:1]  # its answer has those of its own
            await asked(scope, receive, send)
            return
        try:
            exchange.principal = admit(scope, self.access)
        except Unauthenticated as error:
            await error_response(error, 0, scope["path"])(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _record(scope: Scope, exchange: Exchange) -> None:
    endpoint = getattr(scope.get("route"), "path", "other")
    _requests(endpoint, str(exchange.status or CLIENT_GONE)).inc()
    _duration(endpoint).observe(time.monotonic() - exchange.started_s)
