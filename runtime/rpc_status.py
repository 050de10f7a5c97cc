"""The error tree as gRPC statuses carry it, whatever transport they travel by, and back."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from runtime.errors import Code, Overloaded, ServingError, from_status

REASON_KEY = "penstock-reason"
PARAM_KEY = "penstock-param"
# gRFC A6: when a client that retries shall do so.
PUSHBACK_KEY = "grpc-retry-pushback-ms"
# A client's limit for all response headers is 8 KiB by default, and the text travels
# percent-encoded in them: beyond it the client sees a transport error in place of ours.
_MESSAGE_BYTES = 4096
_PARAM_BYTES = 256


def status_of(error: ServingError) -> tuple[Code, str, Sequence[tuple[str, str]]]:
    """Return (code, details, trailing metadata) of an error, fit to travel in HTTP/2 headers."""
    trailing = [(REASON_KEY, error.reason)]
    if error.param:
        trailing.append((PARAM_KEY, _header_text(error.param)))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        trailing.append((PUSHBACK_KEY, str(error.retry_after_s * 1000)))
    return error.code, _details_text(error.message), trailing


def error_of_status(code: int, details: str, trailing: Mapping[str, object]) -> ServingError:
    """Return the error that a status stands for."""
    param, reason = trailing.get(PARAM_KEY), trailing.get(REASON_KEY)
    return from_status(
        code,
        details,
        reason=reason if isinstance(reason, str) else None,
        param=str(param) if param is not None else None,
    )


def _details_text(message: str) -> str:
    text = message[:_MESSAGE_BYTES].encode("utf-8", "replace").decode()
    while len(quote(text, safe=" ")) > _MESSAGE_BYTES:
        text = text[: len(text) // 2]
    return text


def _header_text(value: str) -> str:
    text = value[:_PARAM_BYTES].encode("ascii", "backslashreplace").decode()
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_PARAM_BYTES])
