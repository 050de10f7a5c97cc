"""Statistics, trace and log settings over real gRPC, asked by tritonclient."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from runtime.errors import ModelNotFound
from runtime.grpc_client import RpcChannel
from runtime.logs import configure_logging, log_level
from runtime.tracing import start_tracing
from tests.integration.kserve_client import (
    WAIT_S,
    ask,
    infer,
    open_stream,
    read,
)
from tests.integration.otlp_collector import otlp_collector
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
SLOW = SimConfig(timing=SimTiming(speedup=1))
CLIENTS_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging(level="info", log_format="text")
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    for package in ("cli", "gateway_http", "server", "worker", "router", "wire", "runtime"):
        logging.getLogger(package).setLevel(logging.NOTSET)


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=FAST) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(stack.grpc) as opened:
        yield opened


async def statistics(client: triton.InferenceServerClient, model: str = "sim") -> Any:
    (found,) = (await client.get_inference_statistics(model)).model_stats
    return found


async def test_statistics_add_up(client: triton.InferenceServerClient, channel: RpcChannel) -> None:
    assert "statistics" in (await client.get_server_metadata()).extensions
    before = await statistics(client)
    assert (before.name, before.version, before.inference_count) == ("sim", "1", 0)
    began_ns = time.monotonic_ns()
    for _ in range(3):
        await infer(channel, ask(stream=False))
    taken_ns = time.monotonic_ns() - began_ns
    stats = await statistics(client)
    assert (stats.inference_count, stats.execution_count) == (3, 3)
    sums = stats.inference_stats
    parts = [sums.queue, sums.compute_input, sums.compute_infer, sums.compute_output]
    assert [it.count for it in (sums.success, *parts)] == [3] * 5
    assert sums.fail.count == 0
    assert 0 < sum(it.ns for it in parts) <= sums.success.ns <= taken_ns
    assert sums.compute_infer.ns > 0
    assert sums.cache_hit.count + sums.cache_miss.count == 3
    assert abs(stats.last_inference / 1000 - time.time()) < 60
    assert not stats.response_stats
    assert not stats.batch_stats


async def test_a_prompt_that_was_seen_before_is_a_cache_hit(
    client: triton.InferenceServerClient, channel: RpcChannel
) -> None:
    request = ask(stream=False)
    del request.inputs[0], request.raw_input_contents[0]
    request.inputs.add(name="input_ids", datatype="INT32", shape=[200])
    request.raw_input_contents.append(b"\7\0\0\0" * 200)
    for _ in range(2):
        await infer(channel, request)
    sums = (await statistics(client)).inference_stats
    assert (sums.cache_hit.count, sums.cache_miss.count) == (1, 1)


async def test_streams_failures_and_cancels_are_told_apart(model_folder: Path) -> None:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        async with open_stream(channel) as stream:
            stream.send(ask("whole", max_tokens=4))
            stream.send(ask("refused", lora_name="nobody", max_tokens=4000))
            late = ask("late", max_tokens=4000)
            late.parameters["timeout"].int64_param = 300_000  # µs
            stream.send(late)
            await read(stream, finals=3)
        async with open_stream(channel) as stream:
            stream.send(ask("gone", max_tokens=4000))
            await anext(aiter(stream))
        await eventually(lambda: stack.door.in_flight == 0)
        async with triton.InferenceServerClient(stack.grpc) as client:
            stats = await statistics(client)
        sums, first, final = (
            stats.inference_stats, stats.response_stats["0"], stats.response_stats["final"],
        )  # fmt: skip
        assert (sums.success.count, sums.fail.count) == (1, 3)
        assert (first.success.count, first.fail.count, first.cancel.count) == (3, 1, 0)
        assert (final.success.count, final.fail.count, final.cancel.count) == (1, 1, 1)
        assert (first.compute_infer.count, final.compute_infer.count) == (3, 1)
        await channel.close()


async def test_a_model_that_is_not_here_has_no_statistics_and_no_name_means_all(
    channel: RpcChannel, client: triton.InferenceServerClient
) -> None:
    for name, version in (("nobody", ""), ("sim", "2")):
        asked = pb.ModelStatisticsRequest(name=name, version=version)
        with pytest.raises(ModelNotFound):
            await channel.unary(KSERVE, "ModelStatistics", asked, timeout_s=WAIT_S)
    everybody = await client.get_inference_statistics(as_json=True)
    assert [it["name"] for it in everybody["model_stats"]] == ["sim"]


async def test_tritonclient_changes_what_is_logged(
    restored_logging: None, client: triton.InferenceServerClient
) -> None:
    told = await client.get_log_settings(as_json=True)
    assert told["settings"] == {
        "log_file": {"string_param": ""},
        "log_info": {"bool_param": True},
        "log_warning": {"bool_param": True},
        "log_error": {"bool_param": True},
        "log_verbose_level": {"uint32_param": 0},
        "log_format": {"string_param": "default"},
    }
    told = await client.update_log_settings(
        {"log_verbose_level": 1, "log_info": False, "log_format": "ISO8601"}
    )
    assert log_level() == "debug"
    assert told.settings["log_verbose_level"].uint32_param == 1
    assert not told.settings["log_info"].bool_param
    with pytest.raises(InferenceServerException, match="log_file"):
        await client.update_log_settings({"log_file": "/tmp/penstock.log"})
    await client.update_log_settings({"log_verbose_level": 0, "log_info": True})
    assert log_level() == "info"


async def test_tritonclient_changes_what_is_traced(model_folder: Path) -> None:
    with otlp_collector() as collector:
        tracing = start_tracing(collector.endpoint, "test")
        async with (
            running_stack(model_folder, sim=FAST, tracing=tracing) as stack,
            triton.InferenceServerClient(stack.grpc) as client,
        ):
            channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
            told = await client.get_trace_settings("sim", as_json=True)
            assert told["settings"] == {
                "trace_level": {"value": ["TIMESTAMPS"]},
                "trace_rate": {"value": ["1"]},
                "trace_count": {"value": ["-1"]},
                "trace_mode": {"value": ["opentelemetry"]},
            }
            await client.update_trace_settings(settings={"trace_rate": "3"})
            for _ in range(9):
                await infer(channel, ask(stream=False))
            await client.update_trace_settings("sim", {"trace_level": ["OFF"]})
            await infer(channel, ask(stream=False))
            metadata = {"traceparent": CLIENTS_TRACE}
            await channel.unary(
                KSERVE, "ModelInfer", ask(stream=False), timeout_s=WAIT_S, metadata=metadata
            )
            told = await client.update_trace_settings("sim", {"trace_level": None})
            assert told.settings["trace_level"].value == ["TIMESTAMPS"]
            await channel.unary(
                KSERVE, "ModelInfer", ask(stream=False), timeout_s=WAIT_S, metadata=metadata
            )
            with pytest.raises(InferenceServerException, match="trace_file"):
                await client.update_trace_settings(settings={"trace_file": "x"})
            with pytest.raises(InferenceServerException, match="nobody"):
                await client.get_trace_settings("nobody")
            await channel.close()
        await asyncio.to_thread(tracing.close)
        roots = [span for span in collector.spans if span.name == "ModelInfer"]
        assert sorted(span.trace_id == CLIENTS_TRACE.split("-")[1] for span in roots) == [
            False, False, False, True,
        ]  # fmt: skip


async def test_without_a_collector_there_is_nothing_to_switch_on(
    client: triton.InferenceServerClient,
) -> None:
    told = await client.get_trace_settings()
    assert told.settings["trace_level"].value == ["OFF"]
    with pytest.raises(InferenceServerException, match="--otlp-endpoint"):
        await client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
