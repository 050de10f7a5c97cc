"""A worker's service over real gRPC: whole answers and single responses."""

import struct
from typing import Any

import pytest

from runtime.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServingError,
)
from tests.integration.worker_stack import (
    WAIT_S,
    Worker,
    ask,
    in_band_error,
    next_response,
    responses_until_final,
)
from wire import inference_pb2 as pb
from wire.pool import KSERVE
from wire.tokens import FinishReason


# ------------------------------------------------------------------------------ what is here
async def test_the_worker_is_live_ready_and_says_what_it_serves(worker: Worker) -> None:
    call = worker.channel.unary
    live = await call(KSERVE, "ServerLive", pb.ServerLiveRequest(), timeout_s=WAIT_S)
    assert live.live
    ready = await call(KSERVE, "ServerReady", pb.ServerReadyRequest(), timeout_s=WAIT_S)
    assert ready.ready
    about = await call(KSERVE, "ServerMetadata", pb.ServerMetadataRequest(), timeout_s=WAIT_S)
    assert about.name == "penstock-worker"
    model = pb.ModelMetadataRequest(name="m")
    metadata = await call(KSERVE, "ModelMetadata", model, timeout_s=WAIT_S)
    assert "input_ids" in [tensor.name for tensor in metadata.inputs]
    config = await call(KSERVE, "ModelConfig", pb.ModelConfigRequest(name="m"), timeout_s=WAIT_S)
    assert config.config.name == "m"


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("m", "", True), ("alias", "1", True), ("m", "2", False), ("other", "", False)],
)
async def test_model_ready_knows_the_model_its_aliases_and_version(
    worker: Worker, name: str, version: str, ready: bool
) -> None:
    request = pb.ModelReadyRequest(name=name, version=version)
    answer = await worker.channel.unary(KSERVE, "ModelReady", request, timeout_s=WAIT_S)
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
