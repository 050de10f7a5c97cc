"""Places, queue, time limits and accounting of the front door, over real gRPC."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from runtime.errors import InvalidRequest, Overloaded, ServingError
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from tests.integration.kserve_client import ask, ids_by_request, infer, is_final, open_stream, read
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.generate import GenerateRequest
from wire.pool import KSERVE, rpc_types
from wire.sampling import make_sampling
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

SLOW = SimConfig(timing=SimTiming(speedup=1))
FAST = SimConfig(timing=SimTiming(speedup=0))


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"penstock_{name}", labels) or 0.0


def channel_to(stack: Stack) -> RpcChannel:
    return RpcChannel(stack.grpc, rpc_types=rpc_types)


def order_of_ends(answers: list[Any]) -> list[str]:
    whole = [it.infer_response for it in answers if not it.error_message]
    return [response.id for response in whole if is_final(response)]


async def test_beyond_its_places_a_model_queues_and_beyond_its_queue_it_refuses(
    model_folder: Path,
) -> None:
    config = FrontDoorConfig(worker_concurrency=2, queue_limit=3)
    refused_before = value(
        "requests_total", model="sim", endpoint="ModelStreamInfer", outcome="overloaded"
    )
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            for number in range(7):
                stream.send(ask(str(number), max_tokens=20))
            await eventually(lambda: stack.engine_load == 2)
            await eventually(lambda: stack.door.describe()["queued"] == 3)
            assert stack.door.in_flight == 5
            assert value("requests_queued", model="sim") == 3
            answers = await read(stream, finals=7)
        refused = {it.infer_response.id for it in answers if it.error_message}
        assert refused == {"5", "6"}
        ids = ids_by_request([it for it in answers if not it.error_message])
        assert {name: len(tokens) for name, tokens in ids.items()} == dict.fromkeys("01234", 20)
        await channel.close()
    refused_after = value(
        "requests_total", model="sim", endpoint="ModelStreamInfer", outcome="overloaded"
    )
    assert refused_after - refused_before == 2
    assert value("requests_queued", model="sim") == 0


async def test_the_queue_goes_by_priority(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            for name, priority in (("running", 0), ("late", 7), ("soon", 1)):
                request = ask(name, max_tokens=3)
                request.parameters["priority"].int64_param = priority
                stream.send(request)
            assert order_of_ends(await read(stream, finals=3)) == ["running", "soon", "late"]
        await channel.close()


async def test_who_waits_too_long_for_a_place_is_told_to_come_back(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9, queue_timeout_s=0.05)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            stream.send(ask("long", max_tokens=60))
            await eventually(lambda: stack.engine_load == 1)
            with pytest.raises(Overloaded, match=r"no place became free within 0\.05 s"):
                await infer(channel, ask("waits", stream=False))
            assert order_of_ends(await read(stream)) == ["long"]
        await channel.close()


async def test_a_queued_request_that_is_cancelled_leaves_the_queue(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            stream.send(ask("long", max_tokens=60))
            await eventually(lambda: stack.engine_load == 1)
            async with open_stream(channel) as impatient:
                impatient.send(ask("gone"))
                await eventually(lambda: stack.door.in_flight == 2)
            await eventually(lambda: stack.door.in_flight == 1)
            assert order_of_ends(await read(stream)) == ["long"]
        await eventually(lambda: stack.door.in_flight == 0)
        await channel.close()


async def test_queued_requests_do_not_wait_for_a_model_without_workers(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            stream.send(ask("running", max_tokens=30))
            stream.send(ask("queued"))
            await eventually(lambda: stack.door.in_flight == 2)
            lease = stack.workers[0].lease
            assert lease is not None
            await lease.withdraw()
            answers = await read(stream, finals=2)
        errors = {it.infer_response.id: it.error_message for it in answers if it.error_message}
        assert list(errors) == ["queued"]
        assert "no ready worker" in errors["queued"]
        assert order_of_ends(answers) == ["running"]
        await channel.close()


async def test_requests_in_flight_are_bounded_for_all_models_together(model_folder: Path) -> None:
    config = FrontDoorConfig(max_in_flight=1)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            stream.send(ask("long", max_tokens=40))
            await eventually(lambda: stack.door.in_flight == 1)
            with pytest.raises(Overloaded):
                await infer(channel, ask("second", stream=False))
            await read(stream)
        assert await infer(channel, ask("third", stream=False))
        await channel.close()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (FrontDoorConfig(first_token_timeout_s=0.1), "no first token came within 0.1 s"),
        (FrontDoorConfig(token_timeout_s=0.1), "no further token came within 0.1 s"),
    ],
)
async def test_a_worker_that_stops_answering_costs_its_requests_their_limit(
    model_folder: Path, config: FrontDoorConfig, word: str
) -> None:
    hang_in = 1 if config.first_token_timeout_s else 4
    sim = SimConfig(timing=SimTiming(speedup=0), hang_after_steps=hang_in)
    async with running_stack(model_folder, sim=sim, config=config) as stack:
        channel = channel_to(stack)
        with pytest.raises(ServingError, match=word) as caught:
            await infer(channel, ask("stuck", stream=False, max_tokens=50))
        assert caught.value.reason == "stalled"
        await eventually(lambda: stack.door.in_flight == 0)
        await channel.close()


async def test_the_servers_limit_of_tokens_names_the_parameter(model_folder: Path) -> None:
    config = FrontDoorConfig(max_tokens_limit=5)
    async with running_stack(model_folder, sim=FAST, config=config) as stack:
        channel = channel_to(stack)
        with pytest.raises(InvalidRequest) as caught:
            await infer(channel, ask("much", stream=False, max_tokens=6))
        assert caught.value.param == "max_tokens"
        await channel.close()


async def test_a_finished_request_is_one_log_line_and_counted_once(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"model": "sim", "endpoint": "ModelInfer"}
    before = value("requests_total", outcome="ok", **labels)
    tokens_before = value("output_tokens_total", model="sim")
    caplog.set_level(logging.INFO, logger="runtime.request_record")
    async with running_stack(model_folder, sim=FAST) as stack:
        channel = channel_to(stack)
        await infer(channel, ask("told", stream=False, max_tokens=8))
        with pytest.raises(InvalidRequest):
            await infer(channel, ask("bad", stream=False, temperature=-1))
        with pytest.raises(ServingError):
            await infer(channel, ask("who", stream=False, model="nobody"))
        await channel.close()
    told, bad, who = (record.__dict__ for record in caplog.records)
    assert told["request_id"] == "told"
    assert (told["model"], told["worker"], told["outcome"]) == ("sim", "worker-0", "ok")
    assert (told["input_tokens"], told["output_tokens"], told["cached_tokens"]) == (2, 8, 0)
    assert 0 < told["first_token_s"] <= told["duration_s"]
    assert (bad["request_id"], bad["outcome"]) == ("bad", "invalid_request")
    assert "temperature" in bad["detail"]
    assert (who["model"], who["outcome"]) == ("unknown", "model_not_found")
    assert value("requests_total", outcome="ok", **labels) - before == 1
    assert value("output_tokens_total", model="sim") - tokens_before == 8
    assert value("requests_in_flight", model="sim") == 0
    assert value("time_to_first_token_seconds_count", **labels) >= 1
    assert value("inter_token_latency_seconds_count", model="sim") >= 7


async def test_what_still_runs_at_the_drain_limit_ends_with_one_error(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream, asyncio.TaskGroup() as group:
            stream.send(ask("streamed", max_tokens=4000))
            waiting = group.create_task(_failure(channel))
            await eventually(lambda: stack.engine_load == 2)
            stack.door.drain()
            stack.door.give_up()
            answers = await read(stream)
        assert "stopped before the request was complete" in answers[-1].error_message
        assert waiting.result() == "draining"
        await eventually(lambda: stack.engine_load == 0)
        await channel.close()


async def test_giving_up_starts_nobody_who_waits(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9)
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        labels = {"model": "sim", "worker": "worker-0", "policy": "kv"}
        sent_before = value("router_decisions_total", **labels)
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            for number in range(4):
                stream.send(ask(str(number), max_tokens=4000))
            await eventually(lambda: stack.door.in_flight == 4)
            stack.door.drain()
            stack.door.give_up()
            answers = await read(stream, finals=4)
        assert all("stopped before" in answer.error_message for answer in answers[-4:])
        assert value("router_decisions_total", **labels) - sent_before == 1
        assert value("requests_queued", model="sim") == 0
        await channel.close()


async def test_who_gives_up_while_waiting_is_in_the_metric_of_waits(model_folder: Path) -> None:
    config = FrontDoorConfig(worker_concurrency=1, queue_limit=9, queue_timeout_s=0.05)
    before = value("queue_seconds_count", model="sim")
    async with running_stack(model_folder, sim=SLOW, config=config) as stack:
        channel = channel_to(stack)
        async with open_stream(channel) as stream:
            stream.send(ask("long", max_tokens=60))
            await eventually(lambda: stack.engine_load == 1)
            with pytest.raises(Overloaded):
                await infer(channel, ask("waits", stream=False))
            await read(stream)
        await channel.close()
    assert value("queue_seconds_count", model="sim") - before == 1


async def test_long_prompts_of_clients_that_left_are_not_encoded(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=FAST) as stack:
        plane = stack.door._plane
        request = GenerateRequest(
            request_id="long",
            model="sim",
            prompt="word " * 200_000,
            sampling=make_sampling({"temperature": 0}),
        )
        encodings = []
        for _ in range(20):
            generation = plane.begin(request)
            encodings.append(plane._flights[generation].encoding)
            generation.cancel()
        cancelled = [it for it in encodings if it is not None and it.cancelled()]
        assert len(cancelled) >= 19
        assert stack.door.in_flight == 0


async def test_a_withdrawn_server_is_not_ready_and_still_takes_requests(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=FAST) as stack:
        channel = channel_to(stack)
        stack.door.withdraw()
        server = await channel.unary(KSERVE, "ServerReady", pb.ServerReadyRequest(), timeout_s=5)
        model = await channel.unary(
            KSERVE, "ModelReady", pb.ModelReadyRequest(name="sim"), timeout_s=5
        )
        assert (server.ready, model.ready) == (False, False)
        assert not await stack.door.backend.is_ready()
        assert await infer(channel, ask("late", stream=False))
        await channel.close()


async def _failure(channel: RpcChannel) -> str:
    with pytest.raises(ServingError) as caught:
        await infer(channel, ask("whole", stream=False, max_tokens=4000))
    return caught.value.reason


async def test_the_health_page_tells_of_models_and_workers(model_folder: Path) -> None:
    async with running_stack(model_folder, workers=2, sim=FAST) as stack:
        about = stack.door.describe()
        assert (about["process"], about["draining"], about["in_flight"]) == ("frontend", False, 0)
        (model,) = about["models"]
        assert (model["name"], model["ready"]) == ("sim", True)
        assert [worker["id"] for worker in model["workers"]] == ["worker-0", "worker-1"]
        assert all(worker["connected"] for worker in model["workers"])
        assert stack.door.readiness() == {"": True, "sim": True}
