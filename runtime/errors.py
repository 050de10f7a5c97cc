"""The one error tree: raised anywhere, mapped to a status in one place per front.

Each class carries its gRPC code, HTTP status, OpenAI error type and a fixed lower-case reason
(also sent as `penstock-reason` in gRPC trailing metadata and in step frames).
"""

import logging
from enum import IntEnum
from typing import ClassVar

INTERNAL_TEXT = "internal error; the server's log has the details"

_LOG = logging.getLogger(__name__)


class Code(IntEnum):
    """gRPC status codes (grpc/doc/statuscodes.md), here so that only one module imports grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """Base of all errors a client may see. `message` is safe to show; `param` names the field."""

    code: ClassVar[Code] = Code.INTERNAL
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    reason: ClassVar[str] = "internal"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InternalError(ServingError):
    """A defect of ours: logged with its trace, answered with a fixed text."""


class EngineFailed(ServingError):
    """The engine answered this request with an error of its own; others go on."""

    reason = "engine_failed"


class InvalidRequest(ServingError):
    """A field of the request is wrong; `param` names it."""

    code = Code.INVALID_ARGUMENT
    http_status = 400
    openai_type = "invalid_request_error"
    reason = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """The prompt leaves no room in the model's context (OpenAI: context_length_exceeded)."""

    reason = "context_length_exceeded"


class UnsupportedValue(InvalidRequest):
    """A documented field is set to something that is not offered here."""

    reason = "unsupported_value"


class RequestTooLarge(InvalidRequest):
    """The body is over the configured limit."""

    code = Code.RESOURCE_EXHAUSTED
    http_status = 413
    reason = "request_too_large"


class InvalidConfig(ServingError):
    """A flag, variable, file or model reference is wrong; the process does not start."""

    code = Code.FAILED_PRECONDITION
    reason = "invalid_config"


class ModelNotFound(ServingError):
    """No such model or version here."""

    code = Code.NOT_FOUND
    http_status = 404
    openai_type = "invalid_request_error"
    reason = "model_not_found"


class ResponseNotFound(ServingError):
    """No such response is stored here, or it is another API key's."""

    code = Code.NOT_FOUND
    http_status = 404
    openai_type = "invalid_request_error"
    reason = "response_not_found"


class ModelAlreadyExists(ServingError):
    """Another model has this name or alias."""

    code = Code.ALREADY_EXISTS
    http_status = 409
    openai_type = "invalid_request_error"
    reason = "model_already_exists"


class Unsupported(ServingError):
    """The rpc or option is part of the protocol and not offered here."""

    code = Code.UNIMPLEMENTED
    http_status = 501
    openai_type = "invalid_request_error"
    reason = "unsupported"


class ModelNotReady(ServingError):
    """The model is known and has no ready worker at present."""

    code = Code.UNAVAILABLE
    http_status = 503
    reason = "model_not_ready"


class WorkerLost(ServingError):
    """The worker died or became unreachable during the request; safe to retry elsewhere."""

    code = Code.UNAVAILABLE
    http_status = 503
    reason = "worker_lost"


class Draining(ServingError):
    """The server is stopping and takes no new requests."""

    code = Code.UNAVAILABLE
    http_status = 503
    reason = "draining"


class Overloaded(ServingError):
    """A limit on queued or running work is reached; try again, in `retry_after_s` if it is known.

    HTTP says so with Retry-After, gRPC with grpc-retry-pushback-ms in the trailing metadata.
    """

    code = Code.RESOURCE_EXHAUSTED
    http_status = 429
    openai_type = "rate_limit_error"
    reason = "overloaded"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class Unauthenticated(ServingError):
    """The call carries no key, or none that is known here (OpenAI: invalid_api_key)."""

    code = Code.UNAUTHENTICATED
    http_status = 401
    openai_type = "invalid_request_error"
    reason = "invalid_api_key"


class RequestTimeout(ServingError):
    """The client took too long to send its request."""

    code = Code.DEADLINE_EXCEEDED
    http_status = 408
    openai_type = "timeout_error"
    reason = "request_timeout"


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its final response."""

    code = Code.DEADLINE_EXCEEDED
    http_status = 504
    openai_type = "timeout_error"
    reason = "deadline_exceeded"


class Stalled(ServingError):
    """The worker brought no token for longer than the limit; the request was given up."""

    code = Code.DEADLINE_EXCEEDED
    http_status = 504
    reason = "stalled"


class Cancelled(ServingError):
    """The client went away or cancelled (HTTP 499 is nginx's client-closed-request)."""

    code = Code.CANCELLED
    http_status = 499
    reason = "cancelled"


def _tree(cls: type[ServingError]) -> list[type[ServingError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _tree(child)]


_BY_REASON = {cls.reason: cls for cls in reversed(_tree(ServingError)[1:])}
_BY_CODE: dict[int, type[ServingError]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.NOT_FOUND: ModelNotFound,
    Code.ALREADY_EXISTS: ModelAlreadyExists,
    Code.UNAVAILABLE: WorkerLost,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.CANCELLED: Cancelled,
    Code.UNIMPLEMENTED: Unsupported,
}


def from_status(
    code: int, message: str, *, reason: str | None = None, param: str | None = None
) -> ServingError:
    """Rebuild the error another process sent: by its reason, else by its gRPC code."""
    cls = _BY_REASON.get(reason) if reason else None
    return (cls or _BY_CODE.get(code, InternalError))(message, param=param)


def shown_error(error: BaseException, *, where: str) -> ServingError:
    """Return what a client may see of `error`; anything that is not ours is logged with its trace.

    Of an exception group the first ServingError counts.
    """
    if isinstance(error, ServingError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, InternalError) and error.message == INTERNAL_TEXT:
        return error  # mapped and logged before, here or in the process that sent it
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(ServingError)
        if ours is not None:
            return shown_error(_first_leaf(ours), where=where)
    _LOG.error("unexpected error in %s", where, exc_info=error)
    return InternalError(INTERNAL_TEXT)


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
