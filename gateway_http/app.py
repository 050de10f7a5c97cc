"""The HTTP front: OpenAI's and KServe's paths over any Backend. Translates and calls only."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.answer_schema import Model, Models
from gateway_http.api_document import describe_endpoint
from gateway_http.config import GatewayConfig
from gateway_http.cross_origin import CrossOrigin
from gateway_http.embeddings import add_embeddings
from gateway_http.endpoints import EndpointApp
from gateway_http.errors import error_response, http_error_response, known_error
from gateway_http.exchange import EXCHANGE, GatewayApp
from gateway_http.kserve_rest import add_kserve
from gateway_http.messages.routes import add_messages
from gateway_http.openai_routes import add_openai
from gateway_http.other_models import add_other_models
from gateway_http.responses.routes import add_responses
from gateway_http.routing import add_routing
from gateway_http.tokens_api import add_tokenize
from runtime.access import Access
from runtime.errors import ModelNotFound, ServingError
from runtime.request_record import record_refusal
from wire.cards import ModelCard
from wire.generate import Backend, Routing


def create_app(
    backend: Backend,
    config: GatewayConfig,
    metrics: Callable[[], bytes] | None = None,
    *,
    access: Access | None = None,
    routing: Routing | None = None,
) -> GatewayApp:
    """The ASGI application. `metrics` writes Prometheus text; by default the process's registry.

    With `access` all but health needs a key that it knows. `routing` is there in a process that
    routes by itself.
    """
    app = GatewayApp(title="Penstock", summary="OpenAI and KServe v2 over HTTP", version="1")
    app.access = access
    app.set_common_headers(config.headers)
    app.further_paths = config.paths
    if config.cors_origins:
        app.cross_origin = CrossOrigin(config.cors_origins)

    async def on_serving_error(request: Request, failure: Exception) -> Response:
        exchange = request.scope[EXCHANGE]
        shown = known_error(failure, request_id=exchange.request_id)
        if exchange.endpoint:
            record_refusal(
                request_id=exchange.request_id,
                endpoint=exchange.endpoint,
                outcome=shown.reason,
                detail=shown.message,
                now=time.monotonic(),
            )
        return error_response(shown, config.retry_after_s, request.url.path)

    app.add_exception_handler(ServingError, on_serving_error)
    app.add_exception_handler(HTTPException, http_error_response)
    app.add_exception_handler(Exception, on_serving_error)
    add_openai(app, backend, config)
    _add_models(app, backend)
    add_responses(app, backend, config)
    add_messages(app, backend, config)
    add_embeddings(app, backend, config)
    add_tokenize(app, backend, config)
    add_other_models(app, backend, config)
    add_kserve(app, backend, config)
    _add_status(app, backend, metrics or generate_latest)
    if routing is not None:
        add_routing(app, routing, config)
    app.add_pages()
    return app


def _add_models(app: EndpointApp, backend: Backend) -> None:
    @app.get(
        "/v1/models",
        summary="List the models",
        tags=["openai"],
        **describe_endpoint(None, Models),
    )
    async def models() -> Response:
        entries = [
            entry
            for card in await backend.models()
            for entry in _entries(card, await backend.is_ready(card.name))
        ]
        return _json({"object": "list", "data": entries})

    @app.get("/v1/models/{name:path}/ready", summary="Whether it has a worker", tags=["status"])
    async def model_ready(name: str) -> Response:
        ready = await backend.is_ready(name)
        return _json({"id": name, "ready": ready}, 200 if ready else 503)

    @app.get(
        "/v1/models/{name:path}",
        summary="Describe one model",
        tags=["openai"],
        **describe_endpoint(None, Model),
    )
    async def model(name: str) -> Response:
        for card in await backend.models():
            for entry in _entries(card, await backend.is_ready(card.name)):
                if entry["id"] == name:
                    return _json(entry)
        raise ModelNotFound(f"model {name!r} is not served here", param="model")


def _entries(card: ModelCard, ready: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "object": "model",
            "created": card.created,
            "owned_by": "penstock",
            "root": card.name,
            "parent": card.name if name in card.adapters else None,
            "max_model_len": card.context_length,
            "ready": ready,
        }
        for name in card.names
    ]


def _add_status(app: EndpointApp, backend: Backend, metrics: Callable[[], bytes]) -> None:
    @app.get("/live", summary="Whether the process answers", tags=["status"])
    async def live() -> Response:
        return _json({"status": "live"})

    @app.get("/ready", summary="Whether a model has a worker", tags=["status"])
    @app.get("/health", summary="Same as /ready", tags=["status"])
    async def ready() -> Response:
        if await backend.is_ready():
            return _json({"status": "ready"})
        return _json({"status": "not_ready"}, 503)

    @app.get(
        "/metrics",
        summary="Prometheus text",
        tags=["status"],
        **describe_endpoint(None, None, media=CONTENT_TYPE_LATEST.partition(";")[0]),
    )
    def metrics_text() -> Response:  # not async: it may block, and gets a thread to do so
        return Response(metrics(), headers={"content-type": CONTENT_TYPE_LATEST})


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
