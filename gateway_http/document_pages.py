"""FastAPI's part: the OpenAPI document of declared endpoints, and the pages that show it."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from gateway_http.api_document import completed
from gateway_http.endpoints import Endpoint


def documented(endpoints: Sequence[Endpoint], about: dict[str, Any]) -> FastAPI:
    """Return an application that serves the document and its pages; `about` are its title etc."""
    app = FastAPI(**about)
    for it in endpoints:
        app.add_api_route(it.path, it.handler, methods=[it.method], **it.described)
    made = app.openapi

    def openapi() -> dict[str, Any]:
        return completed(made())

    app.openapi = openapi  # type: ignore[method-assign]
    return app
