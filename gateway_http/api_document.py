"""The OpenAPI document: the schemas of the bodies, taken from the types that decode them.

Every operation's errors are added here, in the form that its path has.
"""

from typing import Any

import msgspec

from gateway_http.errors import (
    AnthropicErrorAnswer,
    ErrorAnswer,
    KServeErrorAnswer,
    speaks_anthropic,
    speaks_kserve,
)
from gateway_http.kserve_json import InferBody
from gateway_http.origin import EXPLAIN_HEADER, RANK_HEADER, TIMEOUT_HEADER, WORKER_HEADER

_ERRORS = {
    400: "A field is missing, wrong or not supported; `param` names it",
    401: "A key is needed, or this one is not known",
    404: "No such model, response or path",
    405: "The path takes other methods; see Allow",
    408: "The request took too long to arrive",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "Too much work at present; see Retry-After",
    499: "The request was cancelled",
    500: "The server or the engine failed",
    501: "A part of the protocol that is not offered",
    503: "No worker is ready, or the server is stopping; see Retry-After",
    504: "The deadline passed",
}
_HEADERS = {
    TIMEOUT_HEADER: ("number", "Seconds that the whole request may take"),
    "x-request-id": ("string", "Comes back with the answer, and stands in logs"),
    "traceparent": ("string", "W3C Trace Context"),
    WORKER_HEADER: ("string", "The only worker that may take it"),
    RANK_HEADER: ("integer", "That worker's data-parallel rank"),
    EXPLAIN_HEADER: ("boolean", "Say in headers of the answer where it went"),
}
_DESCRIBED: dict[str, type[msgspec.Struct]] = {}
_REFERENCE = "#/components/schemas/{name}"


def describe_endpoint(
    body: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
    *,
    example: Any = None,
    events: bool = False,
    media: str = "application/json",
) -> dict[str, Any]:
    """FastAPI's arguments that document an endpoint with these bodies.

    `example` is a request's body; with `events` the answer may be a stream of server-sent ones;
    `media` is the whole answer's type.
    """
    schema = _reference(answer) if answer is not None else {}
    content: dict[str, Any] = {media: {"schema": schema}}
    if events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {
        "response_model": None,
        "responses": {200: {"description": "The answer", "content": content}},
    }
    if body is not None:
        shown: dict[str, Any] = {"schema": _reference(body)}
        if example is not None:
            shown["example"] = example
        found["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": shown}},
            "parameters": [
                {"name": name, "in": "header", "description": text, "schema": {"type": kind}}
                for name, (kind, text) in _HEADERS.items()
            ],
        }
    return found


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    _DESCRIBED[kind.__name__] = kind
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def describe_kserve(end: str) -> dict[str, Any]:
    """FastAPI's arguments that document the KServe endpoint whose path ends so."""
    media = "text/event-stream" if end == "/generate_stream" else "application/json"
    body = InferBody if end == "/infer" else KServeGenerate
    example: Any = {"text_input": "The capital of France is", "max_tokens": 8}
    if end == "/infer":
        text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hello"]}
        example = {"inputs": [text], "parameters": {"max_tokens": 8}}
    return describe_endpoint(body, None, example=example, media=media)


class KServeGenerate(msgspec.Struct, frozen=True):
    """Triton's generate extension: inputs and parameters of the model by their names."""

    text_input: str


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Add the components and errors to the document that FastAPI makes, and return it."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_errors(path, operation["responses"])
    kinds = [ErrorAnswer, KServeErrorAnswer, AnthropicErrorAnswer, *_DESCRIBED.values()]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    return document


def _add_errors(path: str, responses: dict[str, Any]) -> None:
    # FastAPI's own, for which we answer with 400.
    responses.pop("422", None)
    form: type[msgspec.Struct] = ErrorAnswer
    if speaks_kserve(path):
        form = KServeErrorAnswer
    elif speaks_anthropic(path):
        form = AnthropicErrorAnswer
    content = {"application/json": {"schema": _reference(form)}}
    for status, text in _ERRORS.items():
        responses.setdefault(str(status), {"description": text, "content": content})
