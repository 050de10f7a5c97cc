"""A worker's service over real gRPC, with the simulated engine."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelNotFound,
    ServingError,
    WorkerLost,
)
from runtime.grpc_client import ClientStream, RpcChannel
from runtime.grpc_server import GrpcServer
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.frames import FRAMES_HEADER, read_frame
from wire.pool import POOL, rpc_types
from wire.sampling import Sampling
from wire.text_response import decode_text_response
from wire.token_contract import (
    TokenResponse,
    decode_token_response,
    encode_cancel,
    encode_token_request,
)
from wire.tokens import FinishReason, TokenDelta, TokenRequest
from worker.card import make_card
from worker.service import SERVICE, WorkerService
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

WAIT_S = 10.0
SLOW = SimTiming(speedup=1, step_ms=20)


class Worker:
    """A served engine and a client's channel to it."""

    def __init__(self, engine: SimEngine, service: WorkerService, channel: RpcChannel) -> None:
        self.engine = engine
        self.service = service
        self.channel = channel

    async def infer(self, message: Any, timeout_s: float = WAIT_S) -> TokenResponse:
        answer = await self.channel.unary(SERVICE, "ModelInfer", message, timeout_s=timeout_s)
        return decode_token_response(answer)

    def stream(self, *, frames: bool = False) -> ClientStream:
        metadata = {FRAMES_HEADER: "1"} if frames else None
        return self.channel.stream(SERVICE, "ModelStreamInfer", metadata=metadata)

    async def idle(self) -> None:
        """Wait until neither service nor engine runs anything."""
        await eventually(lambda: not (self.service.in_flight + self.engine.load().running))


@asynccontextmanager
async def serving(model_folder: Path, **sim: Any) -> AsyncIterator[Worker]:
    engine = SimEngine(SimConfig(**({"timing": SimTiming(speedup=0)} | sim)))
    service = WorkerService(engine, make_card(model_folder, "m", await engine.start(), ["alias"]))
    server = GrpcServer(
        services=[service.service], rpc_types=rpc_types, pool=POOL, host="127.0.0.1", port=0
    )
    channel = RpcChannel(await server.start(), rpc_types=rpc_types)
    try:
        yield Worker(engine, service, channel)
        await engine.close()
    finally:
        await channel.close()
        await server.stop(0.0)


@pytest.fixture
async def worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder) as worker:
        yield worker


@pytest.fixture
async def slow_worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder, timing=SLOW) as worker:
        yield worker


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


# ------------------------------------------------------------------------------ what is here
async def test_the_worker_is_live_ready_and_says_what_it_serves(worker: Worker) -> None:
    call = worker.channel.unary
    live = await call(SERVICE, "ServerLive", pb.ServerLiveRequest(), timeout_s=WAIT_S)
    assert live.live
    ready = await call(SERVICE, "ServerReady", pb.ServerReadyRequest(), timeout_s=WAIT_S)
    assert ready.ready
    about = await call(SERVICE, "ServerMetadata", pb.ServerMetadataRequest(), timeout_s=WAIT_S)
    assert about.name == "penstock-worker"
    model = pb.ModelMetadataRequest(name="m")
    metadata = await call(SERVICE, "ModelMetadata", model, timeout_s=WAIT_S)
    assert "input_ids" in [tensor.name for tensor in metadata.inputs]
    config = await call(SERVICE, "ModelConfig", pb.ModelConfigRequest(name="m"), timeout_s=WAIT_S)
    assert config.config.name == "m"


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("m", "", True), ("alias", "1", True), ("m", "2", False), ("other", "", False)],
)
async def test_model_ready_knows_the_model_its_aliases_and_version(
    worker: Worker, name: str, version: str, ready: bool
) -> None:
    request = pb.ModelReadyRequest(name=name, version=version)
    answer = await worker.channel.unary(SERVICE, "ModelReady", request, timeout_s=WAIT_S)
    assert answer.ready is ready


# ------------------------------------------------------------------------------ whole answers
async def test_model_infer_returns_the_whole_answer_with_its_usage(worker: Worker) -> None:
    answer = await worker.infer(ask(logprobs=2))
    assert answer.request_id == "a"
    assert answer.final
    assert len(answer.delta.token_ids) == 8
    assert len(answer.delta.logprobs or []) == 8
    assert answer.delta.finish_reason is FinishReason.LENGTH
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (40, 8)
    again = await worker.infer(ask())
    assert again.usage is not None
    assert again.usage.cached_tokens == 32


@pytest.mark.parametrize(
    ("message", "error", "param"),
    [
        (ask(model="other"), ModelNotFound, "model_name"),
        (ask(n=2, temperature=1.0), InvalidRequest, "n"),
        (ask(prompt=9000), ContextLengthExceeded, "input_ids"),
        (ask(allowed_token_ids=(10**6,)), InvalidRequest, "allowed_token_ids"),
        (ask(timeout_us=-1), InvalidRequest, "timeout"),
        (pb.ModelInferRequest(model_name="m"), InvalidRequest, "input_ids"),
    ],
)
async def test_a_wrong_request_gets_its_status_and_the_next_one_works(
    worker: Worker, message: Any, error: type[ServingError], param: str
) -> None:
    with pytest.raises(error) as caught:
        await worker.infer(message)
    assert caught.value.param == param
    assert (await worker.infer(ask())).final
    await worker.idle()


async def test_bad_json_and_bad_tensors_are_refused_by_name(worker: Worker) -> None:
    broken = ask()
    broken.raw_input_contents[1] = struct.pack("<I", 1) + b"{"
    with pytest.raises(InvalidRequest):
        await worker.infer(broken)
    short = ask()
    short.raw_input_contents[0] = b"123"
    with pytest.raises(InvalidRequest):
        await worker.infer(short)
    assert (await worker.infer(ask())).final


async def test_a_client_that_gives_up_frees_the_engine(slow_worker: Worker) -> None:
    with pytest.raises(DeadlineExceeded):
        await slow_worker.infer(ask(max_tokens=5000), timeout_s=0.2)
    await slow_worker.idle()


async def test_the_timeout_parameter_ends_a_request(slow_worker: Worker) -> None:
    with pytest.raises(DeadlineExceeded):
        await slow_worker.infer(ask(max_tokens=5000, timeout_us=100_000))
    await slow_worker.idle()


# ------------------------------------------------------------------------------ one response each
async def test_streamed_deltas_join_to_the_whole_answer(worker: Worker) -> None:
    whole = await worker.infer(ask(max_tokens=20))
    async with worker.stream() as stream:
        stream.send(ask(max_tokens=20))
        found = await responses_until_final(stream)
        assert [i for one in found for i in one.delta.token_ids] == whole.delta.token_ids
        assert [one.final for one in found].count(True) == 1
        assert found[-1].usage is not None
        assert found[-1].usage.completion_tokens == 20
        stream.half_close()
        with pytest.raises(StopAsyncIteration):
            await next_response(stream)


async def test_requests_of_one_stream_interleave_even_with_the_same_id(
    slow_worker: Worker,
) -> None:
    async with slow_worker.stream() as stream:
        stream.send(ask(request_id="x", max_tokens=10))
        stream.send(ask(request_id="y", max_tokens=10))
        stream.send(ask(request_id="y", max_tokens=10))
        found = await responses_until_final(stream, 3)
    first_end = next(i for i, one in enumerate(found) if one.final)
    assert {one.request_id for one in found[:first_end]} == {"x", "y"}
    assert sum(len(one.delta.token_ids) for one in found) == 30


async def test_each_choice_ends_and_only_the_last_response_is_final(worker: Worker) -> None:
    async with worker.stream() as stream:
        stream.send(ask(n=3, temperature=1.0, seed=1))
        found = await responses_until_final(stream)
    ends = sorted(one.delta.index for one in found if one.delta.finish_reason)
    assert ends == [0, 1, 2]
    assert [one.final for one in found].count(True) == 1
    assert found[-1].usage is not None
    assert found[-1].usage.completion_tokens == 24


async def test_an_error_in_a_stream_is_in_band_and_the_stream_goes_on(worker: Worker) -> None:
    async with worker.stream() as stream:
        stream.send(ask(request_id="bad", model="other"))
        request_id, error = await in_band_error(stream)
        assert request_id == "bad"
        assert isinstance(error, ModelNotFound)
        stream.send(ask())
        assert (await responses_until_final(stream))[-1].final


async def test_a_stream_that_is_cancelled_frees_the_engine(slow_worker: Worker) -> None:
    async with slow_worker.stream() as stream:
        for number in range(3):
            stream.send(ask(request_id=str(number), max_tokens=5000))
        await next_response(stream)
        assert slow_worker.service.in_flight == 3
    await slow_worker.idle()


async def test_half_close_waits_for_all_answers(slow_worker: Worker) -> None:
    async with slow_worker.stream() as stream:
        stream.send(ask(max_tokens=5))
        stream.half_close()
        assert (await responses_until_final(stream))[-1].final
        with pytest.raises(StopAsyncIteration):
            await next_response(stream)


# ------------------------------------------------------------------------------ step frames
async def test_a_step_of_many_requests_is_one_frame(worker: Worker) -> None:
    async with worker.stream(frames=True) as stream:
        headers = await stream.initial_metadata()
        assert headers[FRAMES_HEADER] == "1"
        for slot in range(16):
            stream.send(ask(slot=slot, prompt=10 + slot, max_tokens=50))
        frames = []
        rows: list[tuple[int, Any]] = []
        while len(ended(rows)) < 16:
            frames.append(read_frame(await next_response(stream)))
            rows += frames[-1]
    assert all(end is FinishReason.LENGTH for end in ended(rows).values())
    for slot in range(16):
        assert sum(len(row.token_ids) for at, row in rows if at == slot) == 50
    assert len(frames) < 16 * 50 / 4
    await worker.idle()


async def test_frames_carry_what_single_responses_carry(worker: Worker) -> None:
    whole = await worker.infer(ask(logprobs=2, prompt_logprobs=1))
    async with worker.stream(frames=True) as stream:
        stream.send(ask(slot=7, logprobs=2, prompt_logprobs=1))
        rows = await rows_until(stream, ended)
    deltas = [row for _, row in rows if isinstance(row, TokenDelta)]
    assert [i for delta in deltas for i in delta.token_ids] == whole.delta.token_ids
    logprobs = [position for delta in deltas for position in delta.logprobs or []]
    assert logprobs == whole.delta.logprobs
    assert deltas[0].prompt_logprobs == whole.delta.prompt_logprobs
    assert deltas[0].cached_tokens == 0


async def test_a_cancelled_slot_ends_with_cancelled_and_can_be_used_again(
    slow_worker: Worker,
) -> None:
    async with slow_worker.stream(frames=True) as stream:
        stream.send(ask(slot=3, max_tokens=5000))
        await next_response(stream)
        stream.send(encode_cancel(3))
        stream.send(encode_cancel(99))
        rows = await rows_until(stream, ended)
        assert isinstance(ended(rows)[3], Cancelled)
        await slow_worker.idle()
        stream.send(ask(slot=3))
        assert ended(await rows_until(stream, ended)) == {3: FinishReason.LENGTH}


async def test_a_wrong_request_fails_its_own_slot_only(slow_worker: Worker) -> None:
    async with slow_worker.stream(frames=True) as stream:
        stream.send(ask(slot=0, max_tokens=10))
        stream.send(ask(slot=1, prompt=9000))
        stream.send(ask(slot=2, model="other"))
        stream.send(ask(slot=4, max_tokens=5000, timeout_us=50_000))
        rows = await rows_until(stream, lambda rows: len(ended(rows)) == 4)
    ends = ended(rows)
    assert ends[0] is FinishReason.LENGTH
    assert isinstance(ends[1], ContextLengthExceeded)
    assert ends[1].param == "input_ids"
    assert isinstance(ends[2], ModelNotFound)
    assert isinstance(ends[4], DeadlineExceeded)
    await slow_worker.idle()


async def test_a_message_without_slot_or_with_a_used_one_ends_the_stream(
    slow_worker: Worker,
) -> None:
    for wrong in (ask(), ask(slot=5)):
        async with slow_worker.stream(frames=True) as stream:
            stream.send(ask(slot=5, max_tokens=5000))
            await next_response(stream)
            stream.send(wrong)
            with pytest.raises(InvalidRequest) as caught:
                await rows_until(stream, ended)
            assert caught.value.param == "penstock_slot"
        await slow_worker.idle()


async def test_a_reader_that_comes_late_loses_nothing(worker: Worker) -> None:
    # The answers are large enough to fill the transport's windows while nobody reads.
    count, tokens = 8, 2000
    async with worker.stream(frames=True) as stream:
        for slot in range(count):
            stream.send(ask(slot=slot, max_tokens=tokens, logprobs=5, prompt=5))
        await next_response(stream)
        await worker.idle()
        rows = await rows_until(stream, lambda rows: len(ended(rows)) == count)
    deltas = [row for _, row in rows if isinstance(row, TokenDelta)]
    # The first frame was read above.
    assert count * (tokens - 2) <= sum(len(row.token_ids) for row in deltas) < count * tokens


# ------------------------------------------------------------------------------ the end
async def test_a_draining_worker_finishes_what_runs_and_refuses_the_rest(
    slow_worker: Worker,
) -> None:
    async with slow_worker.stream(frames=True) as frames, slow_worker.stream() as stream:
        frames.send(ask(slot=0, max_tokens=20))
        await next_response(frames)
        slow_worker.service.drain()
        assert not slow_worker.service.ready
        frames.send(ask(slot=1))
        stream.send(ask(request_id="late"))
        assert isinstance((await in_band_error(stream))[1], Draining)
        with pytest.raises(Draining):
            await slow_worker.infer(ask())
        ends = ended(await rows_until(frames, lambda rows: len(ended(rows)) == 2))
        assert ends[0] is FinishReason.LENGTH
        assert isinstance(ends[1], Draining)
        async with asyncio.timeout(WAIT_S):
            await slow_worker.service.wait_idle()
        slow_worker.service.end_streams()
        for ending in (frames, stream):
            with pytest.raises(StopAsyncIteration):
                await next_response(ending)


async def test_when_the_engine_dies_every_request_gets_one_error(slow_worker: Worker) -> None:
    async with slow_worker.stream(frames=True) as frames, slow_worker.stream() as stream:
        for slot in range(3):
            frames.send(ask(slot=slot, max_tokens=5000))
        stream.send(ask(request_id="single", max_tokens=5000))
        await next_response(frames)
        await next_response(stream)
        slow_worker.engine.die("power cut")
        ends = ended(await rows_until(frames, lambda rows: len(ended(rows)) == 3))
        assert all(isinstance(end, WorkerLost) for end in ends.values())
        while not (message := await next_response(stream)).error_message:
            pass
        with pytest.raises(WorkerLost, match="power cut"):
            decode_text_response(message)
        assert slow_worker.service.in_flight == 0
        assert not slow_worker.service.ready
        with pytest.raises(WorkerLost):
            await slow_worker.infer(ask())
