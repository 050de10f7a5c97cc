"""What the server tells gRPC about a call whose peer goes away in the moment of its answer."""

import asyncio
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import pytest

from runtime.errors import DeadlineExceeded
from runtime.grpc_dispatch import Dispatch
from runtime.rpc import CallInfo, Service
from wire.inference_pb2 import ServerLiveRequest
from wire.pool import KSERVE, rpc_types


class GoneContext:
    """A call that can no longer be answered, as its deadline has just passed on the peer's side."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> float:
        return 0.0

    def peer(self) -> str:
        return "peer"

    async def abort(self, *status: Any) -> NoReturn:
        raise grpc.aio.InternalError("the batch failed")


async def test_an_error_that_nobody_can_be_told_any_more_is_a_cancelled_call() -> None:
    async def late(message: Any, info: CallInfo) -> NoReturn:
        raise DeadlineExceeded("the deadline passed")

    dispatch = Dispatch(max_metadata_bytes=1000)
    service = Service(name=KSERVE, unary={"ServerLive": late})
    details: Any = SimpleNamespace(method=f"/{KSERVE}/ServerLive", invocation_metadata=())
    handler: Any = dispatch.generic_handler(service, rpc_types(KSERVE)).service(details)
    # gRPC logs any other exception as an error of the server's.
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(ServerLiveRequest().SerializeToString(), GoneContext())
    assert dispatch.in_flight.count == 0
