"""A worker's service over real gRPC: step frames, and the end of a worker."""

import asyncio
from typing import Any

import pytest

from runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelNotFound,
    WorkerLost,
)
from tests.integration.worker_stack import (
    WAIT_S,
    Worker,
    ask,
    ended,
    in_band_error,
    next_response,
    rows_until,
)
from wire.frames import FRAMES_HEADER, read_frame
from wire.text_response import decode_text_response
from wire.token_contract import encode_cancel
from wire.tokens import FinishReason, TokenDelta


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


async def test_a_withdrawn_worker_is_not_ready_and_still_serves(worker: Worker) -> None:
    worker.service.withdraw()
    assert not worker.service.ready
    assert worker.service.draining
    assert (await worker.infer(ask())).final


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
