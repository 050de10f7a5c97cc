"""The OpenAPI document: the schemas of the bodies, taken from the types that decode them."""

from typing import Any

import msgspec
from fastapi import FastAPI

from gateway_http.errors import ErrorAnswer, KServeErrorAnswer, error_schema
from gateway_http.kserve_json import InferBody
from gateway_http.schema import ChatCompletionRequest, CompletionRequest

_ERRORS = {
    400: "A field is missing, wrong or not supported; `param` names it",
    401: "A key is needed, or this one is not known",
    404: "No such model",
    408: "The request took too long to arrive",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "Too much work at present; see Retry-After",
    499: "The request was cancelled",
    500: "The server or the engine failed",
    503: "No worker is ready, or the server is stopping; see Retry-After",
    504: "The deadline passed",
}
_DESCRIBED: dict[str, type[msgspec.Struct]] = {}
_REFERENCE = "#/components/schemas/{name}"


def describe_generation(body: type[msgspec.Struct]) -> dict[str, Any]:
    """FastAPI's arguments that document a generation endpoint."""
    schema = {"$ref": _REFERENCE.format(name=body.__name__)}
    error = {"application/json": {"schema": error_schema()}}
    answer = {
        "description": "The answer; with `stream` as server-sent events that end in [DONE]",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    errors = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    return {
        "response_model": None,
        "responses": {200: answer, **errors},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        },
    }


def describe_endpoint(
    body: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
    *,
    example: Any = None,
    events: bool = False,
    error: type[msgspec.Struct] = ErrorAnswer,
) -> dict[str, Any]:
    """FastAPI's arguments that document an endpoint with these bodies.

    `example` is a request's body; with `events` the answer may be a stream of server-sent ones;
    `error` is the form of its errors.
    """
    for kind in (body, answer, error):
        if kind is not None:
            _DESCRIBED[kind.__name__] = kind
    reference = {"$ref": _REFERENCE.format(name=answer.__name__)} if answer else {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": reference}}
    if events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    shown = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=error.__name__)}}}
    errors = {status: {"description": text, "content": shown} for status, text in _ERRORS.items()}
    found: dict[str, Any] = {
        "response_model": None,
        "responses": {200: {"description": "The answer", "content": content}, **errors},
    }
    if body is not None:
        media: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(name=body.__name__)}}
        if example is not None:
            media["example"] = example
        found["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": media}}
        }
    return found


def describe_kserve(end: str) -> dict[str, Any]:
    """FastAPI's arguments that document the KServe endpoint whose path ends so."""
    schema = {"type": "object"}
    if end == "/infer":
        schema = {"$ref": _REFERENCE.format(name=InferBody.__name__)}
    media = "text/event-stream" if end == "/generate_stream" else "application/json"
    answer = {"description": "The answer", "content": {media: {"schema": {}}}}
    reference = {"$ref": _REFERENCE.format(name=KServeErrorAnswer.__name__)}
    error = {"application/json": {"schema": reference}}
    errors = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    return {
        "response_model": None,
        "responses": {200: answer, **errors},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        },
    }


def describe(app: FastAPI) -> None:
    """Add the components to the document that FastAPI makes."""
    made = app.openapi
    _, components = msgspec.json.schema_components(
        [
            ChatCompletionRequest,
            CompletionRequest,
            ErrorAnswer,
            InferBody,
            KServeErrorAnswer,
            *_DESCRIBED.values(),
        ],
        ref_template=_REFERENCE,
    )

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
