"""Errors as OpenAI's and KServe's clients expect them, made here from the error tree."""

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from runtime.errors import (
    Overloaded,
    RequestTimeout,
    ServingError,
    Unauthenticated,
    shown_error,
)
from wire.kserve_terms import in_kserve_terms

JSON_TYPE = (b"content-type", b"application/json")
_CODES = {404: "unknown_url", 405: "method_not_allowed", 415: "unsupported_media_type"}
# OpenAI has one field for texts and ids; these are the backends' words.
_PROMPTS = frozenset({"prompt_token_ids", "text_input", "input_ids"})
_RETRYABLE = frozenset({429, 503})


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong. `param` names the field at fault, `code` is fixed and lower-case."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every error answer."""

    error: ErrorBody


class KServeErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every error answer below /v2."""

    error: str


def speaks_kserve(path: str) -> bool:
    """Whether a path belongs to KServe's protocol, so that its errors have that form."""
    return path == "/v2" or path.startswith("/v2/")


def known_error(failure: BaseException, *, request_id: str = "") -> ServingError:
    """The error to show for `failure`; what is not ours is logged and shown as a fixed text."""
    return shown_error(failure, where=f"request {request_id}")


def error_json(error: ServingError) -> bytes:
    """The JSON body {"error": {message, type, param, code}}."""
    param = "prompt" if error.param in _PROMPTS else error.param
    body = ErrorBody(error.message, error.openai_type, param, error.reason)
    return msgspec.json.encode(ErrorAnswer(body))


def kserve_error_json(error: ServingError) -> bytes:
    """The JSON body {"error": text} of the Open Inference Protocol."""
    return msgspec.json.encode(KServeErrorAnswer(in_kserve_terms(error).message))


def error_headers(error: ServingError, retry_after_s: int) -> list[tuple[bytes, bytes]]:
    """Content type, and what else the status asks for: when to come back, or how to present a key.

    `retry_after_s` is for errors that do not say it themselves.
    """
    headers = [JSON_TYPE]
    if error.http_status in _RETRYABLE:
        own_s = error.retry_after_s if isinstance(error, Overloaded) else None
        headers.append((b"retry-after", b"%d" % (own_s or retry_after_s)))
    elif isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    elif isinstance(error, RequestTimeout):
        headers.append((b"connection", b"close"))  # the rest of the request may still come
    return headers


def error_response(error: ServingError, retry_after_s: int, path: str) -> Response:
    """The whole answer for an error outside a generation, in the form that `path` asks for."""
    encode = kserve_error_json if speaks_kserve(path) else error_json
    response = Response(encode(error), status_code=error.http_status)
    response.raw_headers.extend(error_headers(error, retry_after_s))
    return response


def http_error_response(request: Request, failure: Exception) -> Response:
    """The answer for what the routing refuses: unknown path, wrong method, wrong content type."""
    assert isinstance(failure, HTTPException)
    code = _CODES.get(failure.status_code, "invalid_request")
    text = f"{failure.detail}: {request.method} {request.url.path}"
    body = ErrorBody(text, "invalid_request_error", None, code)
    kserve = speaks_kserve(request.url.path)
    return Response(
        msgspec.json.encode(KServeErrorAnswer(text) if kserve else ErrorAnswer(body)),
        status_code=failure.status_code,
        headers=dict(failure.headers or {}),
        media_type="application/json",
    )


def error_schema() -> dict[str, Any]:
    """A reference to the error answer in the OpenAPI document."""
    return {"$ref": "#/components/schemas/ErrorAnswer"}
