"""Between the error tree and gRPC statuses, both ways; the only place that knows both."""

import logging
from typing import Any
from urllib.parse import quote

import grpc

from runtime.errors import InternalError, ServingError, from_status

REASON_KEY = "penstock-reason"
PARAM_KEY = "penstock-param"
INTERNAL_TEXT = "internal error; the server's log has the details"
# A client's limit for all response headers is 8 KiB by default, and the text travels
# percent-encoded in them: beyond it the client sees a transport error in place of ours.
_MESSAGE_BYTES = 4096
_PARAM_BYTES = 256

_LOG = logging.getLogger(__name__)
_STATUS = {int(code.value[0]): code for code in grpc.StatusCode}


def as_serving_error(error: BaseException, *, method: str) -> ServingError:
    """Return what the peer may see of `error`; anything that is not ours is logged with its trace.

    Of an exception group the first ServingError counts.
    """
    if isinstance(error, ServingError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, InternalError) and error.message == INTERNAL_TEXT:
        return error  # mapped and logged before, here or in the process that sent it
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(ServingError)
        if ours is not None:
            return as_serving_error(_first_leaf(ours), method=method)
    _LOG.error("unexpected error in %s", method, exc_info=error)
    return InternalError(INTERNAL_TEXT)


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def status_of(error: ServingError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Return (code, details, trailing metadata) of an error, fit to travel in HTTP/2 headers."""
    trailing = [(REASON_KEY, error.reason)]
    if error.param:
        trailing.append((PARAM_KEY, _header_text(error.param)))
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
