"""Endpoints for kinds of models that are not served here: they say so, in OpenAI's form."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_endpoint
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.intake import read_json_body
from gateway_http.openai import decode_json
from runtime.errors import ModelNotFound, UnsupportedValue
from wire.generate import Backend

_PATHS = {
    "/v1/images/generations": "makes images",
    "/v1/images/edits": "makes images",
    "/v1/images/variations": "makes images",
    "/v1/audio/speech": "speaks",
    "/v1/audio/transcriptions": "listens",
    "/v1/audio/translations": "listens",
    "/v1/moderations": "moderates",
}


class OtherModelRequest(msgspec.Struct, frozen=True):
    """Enough of a body to tell which model is meant."""

    model: str | None = None


def add_other_models(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add the endpoints."""
    for path, does in _PATHS.items():
        app.post(
            path,
            summary=f"For a model that {does}; none is served",
            tags=["not served"],
            **describe_endpoint(OtherModelRequest, None, example={"model": "smollm2"}),
        )(_refusal(backend, config, does))


def _refusal(
    backend: Backend, config: GatewayConfig, does: str
) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        name = None
        kind = request.headers.get("content-type", "application/json")
        if not kind.startswith("multipart/"):
            data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
            name = decode_json(data, OtherModelRequest).model
        if name is not None and any(name in card.names for card in await backend.models()):
            raise UnsupportedValue(f"model: {name!r} is no model that {does}", param="model")
        shown = "" if name is None else f" {name!r}"
        raise ModelNotFound(f"no model{shown} that {does} is served here", param="model")

    return refuse
