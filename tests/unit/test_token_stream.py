"""A worker's streams under a transport that does not take what they send."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from runtime.errors import ServingError
from runtime.rpc import CallInfo
from wire.frames import FRAMES_HEADER, read_frame
from wire.sampling import Sampling
from wire.token_contract import (
    decode_token_request,
    decode_token_response,
    encode_token_request,
)
from wire.tokens import FinishReason, TokenDelta, TokenRequest
from worker.flights import Flights
from worker.service import request_deadline_s
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming
from worker.token_stream import FrameStream, ResponseStream


class ScriptedCall:
    """A transport in the test's hand."""

    def __init__(self) -> None:
        self.info = CallInfo(method="ModelStreamInfer")
        self.writable = True
        self.headers: Mapping[str, str] = {}
        self.sent: list[Any] = []
        self.finished = False

    def set_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        self.headers = metadata

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def finish(self) -> None:
        self.finished = True

    def fail(self, error: ServingError) -> None:
        raise error


def request(slot: int | None = None, tokens: int = 30, n: int = 1) -> Any:
    sampling = Sampling(max_tokens=tokens, logprobs=1, n=n)
    asked = TokenRequest(request_id="a", token_ids=[1, 2, 3], sampling=sampling)
    return encode_token_request(asked, "m", slot=slot)


@pytest.fixture
def flights() -> Flights:
    return Flights(SimEngine(SimConfig(timing=SimTiming(speedup=0))))


def frame_stream(call: ScriptedCall, flights: Flights) -> FrameStream:
    return FrameStream(call, flights, "m", decode_token_request, request_deadline_s)


def response_stream(call: ScriptedCall, flights: Flights) -> ResponseStream:
    return ResponseStream(call, flights, "m", decode_token_request, request_deadline_s)


async def all_answered(flights: Flights) -> None:
    async with asyncio.timeout(5):
        await flights.wait_idle()
        # What the last step brought is sent in the loop's next turn.
        await asyncio.sleep(0)


async def test_frames_merge_while_the_transport_is_full(flights: Flights) -> None:
    call = ScriptedCall()
    stream = frame_stream(call, flights)
    assert call.headers == {FRAMES_HEADER: "1"}
    call.writable = False
    stream.on_message(request(slot=1))
    stream.on_message(request(slot=2))
    stream.on_half_close()
    await all_answered(flights)
    assert not call.sent
    assert not call.finished
    call.writable = True
    stream.on_writable()
    (frame,) = call.sent
    rows = read_frame(frame)
    assert [slot for slot, _ in rows] == [1, 2]
    for _, row in rows:
        assert isinstance(row, TokenDelta)
        assert len(row.token_ids) == len(row.logprobs or []) == 30
        assert row.finish_reason is FinishReason.LENGTH
    assert call.finished


async def test_responses_merge_while_the_transport_is_full(flights: Flights) -> None:
    call = ScriptedCall()
    stream = response_stream(call, flights)
    call.writable = False
    stream.on_message(request(n=2))
    stream.on_half_close()
    await all_answered(flights)
    assert not call.sent
    call.writable = True
    stream.on_writable()
    answers = [decode_token_response(message.infer_response) for message in call.sent]
    assert [(one.delta.index, one.final) for one in answers] == [(0, False), (1, True)]
    assert all(len(one.delta.token_ids) == 30 for one in answers)
    assert all(len(one.delta.logprobs or []) == 30 for one in answers)
    assert answers[0].delta.cached_tokens == 0
    assert answers[1].usage is not None
    assert answers[1].usage.completion_tokens == 60
    assert call.finished


async def test_a_step_is_one_frame_when_the_transport_keeps_up(flights: Flights) -> None:
    call = ScriptedCall()
    stream = frame_stream(call, flights)
    for slot in range(20):
        stream.on_message(request(slot=slot))
    await all_answered(flights)
    assert len(call.sent) == 30
    assert all(len(read_frame(frame)) == 20 for frame in call.sent)


async def test_nothing_is_left_running_when_the_peer_goes(flights: Flights) -> None:
    for make, slot in ((frame_stream, 1), (response_stream, None)):
        call = ScriptedCall()
        stream = make(call, flights)
        stream.on_message(request(slot=slot, tokens=8000))
        assert len(flights) == 1
        stream.on_cancel()
        assert len(flights) == 0
        assert flights.engine.load().waiting == 0
