"""Between the error tree and gRPC statuses, both ways; the only place that knows both."""

from typing import Any
from urllib.parse import quote

import grpc

from runtime.errors import Overloaded, ServingError, from_status

REASON_KEY = "penstock-reason"
PARAM_KEY = "penstock-param"
# gRFC A6: when a client that retries shall do so.
PUSHBACK_KEY = "grpc-retry-pushback-ms"
# A client's limit for all response headers is 8 KiB by default, and the text travels
# percent-encoded in them: beyond it the client sees a transport error in place of ours.
_MESSAGE_BYTES = 4096
_PARAM_BYTES = 256

_STATUS = {int(code.value[0]): code for code in grpc.StatusCode}


def status_of(error: ServingError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Return (code, details, trailing metadata) of an error, fit to travel in HTTP/2 headers."""
    trailing = [(REASON_KEY, error.reason)]
    if error.param:
        trailing.append((PARAM_KEY, _header_text(error.param)))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        trailing.append((PUSHBACK_KEY, str(error.retry_after_s * 1000)))
    return _STATUS[int(error.code)], _details_text(error.message), tuple(trailing)


def _details_text(message: str) -> str:
    text = message[:_MESSAGE_BYTES].encode("utf-8", "replace").decode()
    while len(quote(text, safe=" ")) > _MESSAGE_BYTES:
        text = text[: len(text) // 2]
    return text


def _header_text(value: str) -> str:
    text = value[:_PARAM_BYTES].encode("ascii", "backslashreplace").decode()
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_PARAM_BYTES])


def error_of(rpc_error: grpc.aio.AioRpcError) -> ServingError:
    """Return the error that a failed rpc of ours stands for."""
    trailing: dict[str, Any] = dict(rpc_error.trailing_metadata() or ())
    param = trailing.get(PARAM_KEY)
    return from_status(
        int(rpc_error.code().value[0]),
        rpc_error.details() or rpc_error.code().name,
        reason=trailing.get(REASON_KEY),
        param=str(param) if param is not None else None,
    )
