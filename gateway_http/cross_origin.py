"""Cross-origin requests of browsers: which origins may ask, and what they are told (CORS)."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_DAY_S = 86400
_EXPOSED = ("x-request-id", "retry-after")


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """What the library's middleware stands before; here only its answers are used."""


class CrossOrigin:
    """Starlette's rules for a list of origins; "*" is any."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._rules = CORSMiddleware(
            _nothing,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=list(_EXPOSED),
            max_age=_DAY_S,
        )

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser's question before the request itself; None for other requests."""
        headers = Headers(scope=scope)
        asks = "origin" in headers and "access-control-request-method" in headers
        if scope["method"] != "OPTIONS" or not asks:
            return None
        return self._rules.preflight_response(request_headers=headers)

    def headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What the answer to a request from another origin has to say."""
        origin = Headers(scope=scope).get("origin")
        if origin is None or not self._rules.is_allowed_origin(origin=origin):
            return []
        found = {**self._rules.simple_headers}
        if not self._rules.allow_all_origins:
            found |= {"access-control-allow-origin": origin, "vary": "Origin"}
        return [(name.lower().encode(), value.encode()) for name, value in found.items()]
