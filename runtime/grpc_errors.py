"""Between the error tree and grpc's own statuses, both ways; the only place that knows both."""

from collections.abc import Sequence

import grpc

from runtime.errors import ServingError
from runtime.rpc_status import error_of_status, status_of

_STATUS = {int(code.value[0]): code for code in grpc.StatusCode}


def grpc_status_of(
    error: ServingError,
) -> tuple[grpc.StatusCode, str, Sequence[tuple[str, str]]]:
    """Return (code, details, trailing metadata) of an error, as grpc.aio takes them."""
    code, details, trailing = status_of(error)
    return _STATUS[int(code)], details, tuple(trailing)


def error_of(rpc_error: grpc.aio.AioRpcError) -> ServingError:
    """Return the error that a failed rpc of ours stands for."""
    details = rpc_error.details() or rpc_error.code().name
    trailing = dict(rpc_error.trailing_metadata() or ())
    return error_of_status(int(rpc_error.code().value[0]), details, trailing)
