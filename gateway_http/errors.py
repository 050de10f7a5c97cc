"""Errors as OpenAI's and KServe's clients expect them, made here from the error tree."""

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


MESSAGES_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every error answer below /v1/messages."""

    error: AnthropicErrorBody
    type: str = "error"


def speaks_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's API, so that its errors have that form."""
    return path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")


def anthropic_error_json(error: ServingError) -> bytes:
    """The JSON body {"type": "error", "error": {type, message}}."""
    return _anthropic_json(error.http_status, error.message)


def _anthropic_json(status: int, message: str) -> bytes:
    other = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(status, other)
    return msgspec.json.encode(AnthropicErrorAnswer(AnthropicErrorBody(kind, message)))


def speaks_kserve(path: str) -> bool:
    """Whether a path belongs to KServe's protocol, so that its errors have that form."""
    # /v2/rerank is Cohere's.
    return path == "/v2" or (path.startswith("/v2/") and path != "/v2/rerank")


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
    encode = error_json
    if speaks_kserve(path):
        encode = kserve_error_json
    elif speaks_anthropic(path):
        encode = anthropic_error_json
    response = Response(encode(error), status_code=error.http_status)
    response.raw_headers.extend(error_headers(error, retry_after_s))
    return response


async def http_error_response(request: Request, failure: Exception) -> Response:
    """The answer for what the routing refuses: unknown path, wrong method, wrong content type.

    Starlette calls what is no coroutine in a thread, and imports for 15 ms to do so.
    """
    assert isinstance(failure, HTTPException)
    code = _CODES.get(failure.status_code, "invalid_request")
    text = f"{failure.detail}: {request.method} {request.url.path}"
    content = msgspec.json.encode(ErrorAnswer(ErrorBody(text, "invalid_request_error", None, code)))
    if speaks_kserve(request.url.path):
        content = msgspec.json.encode(KServeErrorAnswer(text))
    elif speaks_anthropic(request.url.path):
        content = _anthropic_json(failure.status_code, text)
    return Response(
        content,
        status_code=failure.status_code,
        headers=dict(failure.headers or {}),
        media_type="application/json",
    )
