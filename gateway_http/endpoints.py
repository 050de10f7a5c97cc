"""A Starlette application whose endpoints are declared as FastAPI's are, and described by it.

FastAPI is imported when the description is first asked for: it takes 0.1 s and 14 MiB, and 0.1 ms
of every request that it serves.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

_PAGES = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Endpoint(NamedTuple):
    """One method of one path. `described` are arguments of FastAPI's `add_api_route`."""

    method: str
    path: str
    handler: Callable[..., Any]
    described: dict[str, Any]


class EndpointApp(Starlette):
    """`get`, `post` and `delete` are decorators, as FastAPI's.

    A handler has a `request`, the parameters of its path by their names, or neither, and returns
    a Response. One that is not async runs in a thread.
    """

    def __init__(self, *, title: str, summary: str, version: str) -> None:
        super().__init__()
        self._about = {"title": title, "summary": summary, "version": version}
        self._endpoints: list[Endpoint] = []
        self._described: Any = None

    def add_pages(self) -> None:
        """Add the document and the pages that show it; last, as every request tries all before."""
        for path in _PAGES:
            self.router.routes.append(_Route(path, _Pages(self), methods=["GET"]))

    def get(self, path: str, **described: Any) -> Callable[[Handler], Handler]:
        """Declare a handler of GET and HEAD."""
        return self._declare("GET", path, described)

    def post(self, path: str, **described: Any) -> Callable[[Handler], Handler]:
        """Declare a handler of POST."""
        return self._declare("POST", path, described)

    def delete(self, path: str, **described: Any) -> Callable[[Handler], Handler]:
        """Declare a handler of DELETE."""
        return self._declare("DELETE", path, described)

    def described(self) -> Any:
        """Return a FastAPI application of the same endpoints; slow the first time."""
        if self._described is None:
            from gateway_http.document_pages import documented  # noqa: PLC0415 - see above

            self._described = documented(self._endpoints, self._about)
        return self._described

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document: dict[str, Any] = self.described().openapi()
        return document

    def _declare(
        self, method: str, path: str, described: dict[str, Any]
    ) -> Callable[[Handler], Handler]:
        def declare(handler: Handler) -> Handler:
            self._endpoints.append(Endpoint(method, path, handler, described))
            self.router.routes.append(_Route(path, _called_by_name(handler), methods=[method]))
            return handler

        return declare


class _Route(Route):
    """A route that a request which matches it can be seen to have matched."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if match is not Match.NONE:
            found["route"] = self
        return match, found


class _Pages:
    """The document and the pages that show it, an ASGI application."""

    def __init__(self, app: EndpointApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages: ASGIApp = await asyncio.to_thread(self._app.described)
        await pages(scope, receive, send)


def _called_by_name(handler: Callable[..., Any]) -> Callable[[Request], Any]:
    names = inspect.signature(handler).parameters
    takes_request, runs_here = "request" in names, inspect.iscoroutinefunction(handler)

    async def endpoint(request: Request) -> Response:
        arguments: dict[str, Any] = dict(request.path_params)
        if takes_request:
            arguments["request"] = request
        if runs_here:
            answer: Response = await handler(**arguments)
            return answer
        return await run_in_threadpool(handler, **arguments)

    return endpoint
