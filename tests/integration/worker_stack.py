"""A worker's service over real gRPC, with the simulated engine: what its tests share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import (
    ServingError,
)
from runtime.grpc_client import ClientStream, RpcChannel
from runtime.grpc_options import GrpcOptions
from tests.transports import transport
from tests.waiting import eventually
from transport.choice import make_server
from wire.frames import FRAMES_HEADER, read_frame
from wire.pool import KSERVE, POOL, rpc_types
from wire.sampling import Sampling
from wire.text_response import decode_text_response
from wire.token_contract import (
    TokenResponse,
    decode_token_response,
    encode_token_request,
)
from wire.tokens import TokenDelta, TokenRequest
from worker.card import make_card
from worker.fleet_service import FleetService
from worker.service import WorkerService
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

WAIT_S = 10.0
SLOW = SimTiming(speedup=1, step_ms=20)


class Worker:
    """A served engine and a client's channel to it."""

    def __init__(
        self, engine: SimEngine, service: WorkerService, fleet: FleetService, channel: RpcChannel
    ) -> None:
        self.engine = engine
        self.service = service
        self.fleet = fleet
        self.channel = channel

    async def infer(self, message: Any, timeout_s: float = WAIT_S) -> TokenResponse:
        answer = await self.channel.unary(KSERVE, "ModelInfer", message, timeout_s=timeout_s)
        return decode_token_response(answer)

    def stream(self, *, frames: bool = False) -> ClientStream:
        metadata = {FRAMES_HEADER: "1"} if frames else None
        return self.channel.stream(KSERVE, "ModelStreamInfer", metadata=metadata)

    async def idle(self) -> None:
        """Wait until neither service nor engine runs anything."""
        await eventually(lambda: not (self.service.in_flight + self.engine.load().running))


@asynccontextmanager
async def serving(model_folder: Path, **sim: Any) -> AsyncIterator[Worker]:
    engine = SimEngine(SimConfig(**({"timing": SimTiming(speedup=0)} | sim)))
    service = WorkerService(engine, make_card(model_folder, "m", await engine.start(), ["alias"]))
    fleet = FleetService(engine, draining=lambda: service.draining)
    server = make_server(
        services=[service.service, fleet.service],
        rpc_types=rpc_types,
        pool=POOL,
        host="127.0.0.1",
        port=0,
        options=GrpcOptions(transport=transport()),
    )
    channel = RpcChannel(await server.start(), rpc_types=rpc_types)
    try:
        yield Worker(engine, service, fleet, channel)
        await engine.close()
    finally:
        fleet.end()
        await channel.close()
        await server.stop(0.0)


def ask(
    *, request_id: str = "a", slot: int | None = None, prompt: int = 40, model: str = "m",
    timeout_us: int | None = None, **sampling: Any,
) -> Any:  # fmt: skip
    request = TokenRequest(
        request_id=request_id,
        token_ids=list(range(prompt)),
        sampling=Sampling(**({"max_tokens": 8, "temperature": 0.0} | sampling)),
    )
    message = encode_token_request(request, model, slot=slot)
    if timeout_us is not None:
        message.parameters["timeout"].int64_param = timeout_us
    return message


async def next_response(stream: ClientStream) -> Any:
    async with asyncio.timeout(WAIT_S):
        return await anext(aiter(stream))


async def responses_until_final(stream: ClientStream, count: int = 1) -> list[TokenResponse]:
    """Responses until `count` requests are over."""
    found: list[TokenResponse] = []
    while count:
        message = await next_response(stream)
        assert not message.error_message
        found.append(decode_token_response(message.infer_response))
        count -= found[-1].final
    return found


async def rows_until(
    stream: ClientStream, done: Callable[[list[tuple[int, Any]]], object]
) -> list[tuple[int, TokenDelta | ServingError]]:
    rows: list[tuple[int, TokenDelta | ServingError]] = []
    while not done(rows):
        rows += read_frame(await next_response(stream))
    return rows


def ended(rows: list[tuple[int, Any]]) -> dict[int, Any]:
    """Slot to its end: a FinishReason or an error."""
    ends: dict[int, Any] = {}
    for slot, row in rows:
        end = row if isinstance(row, ServingError) else row.finish_reason
        if end is not None:
            assert slot not in ends
            ends[slot] = end
    return ends


async def in_band_error(stream: ClientStream) -> tuple[str, ServingError]:
    message = await next_response(stream)
    with pytest.raises(ServingError) as caught:
        decode_text_response(message)
    return message.infer_response.id, caught.value
