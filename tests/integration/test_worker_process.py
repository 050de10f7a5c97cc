"""`penstock worker` as a process: how it ends, and that it takes everything along."""

import asyncio
import json
import os
import re
import signal
import socket
from pathlib import Path

import grpc
import msgspec
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runtime.errors import ServingError, WorkerLost
from tests.integration.otlp_collector import otlp_collector
from tests.integration.worker_process import (
    SIM,
    WAIT_S,
    Running,
    ends,
    refusal,
    request,
    worker,
)
from tests.waiting import wait_until
from wire.cards import WorkerInstance
from wire.pool import FLEET, KSERVE
from wire.tokens import FinishReason

VLLM_START_S = 240.0
MODEL = 'model="smollm2"'


def is_serving(running: Running, name: str) -> bool:
    with grpc.insecure_channel(running.ready["grpc"]) as channel:
        asked = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=WAIT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_sigterm_lets_a_running_stream_finish(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM) as running:
        assert running.is_ready()
        stop = running.process.terminate
        found = asyncio.run(ends(running, [request(0, 150), request(1, 200)], stop))
        assert found == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}
        assert running.exit_code() == 0


@pytest.mark.parametrize(("flags", "kv_events"), [((), True), (("--no-kv-events",), False)])
def test_its_record_says_what_a_router_may_count_on(
    tmp_path: Path, flags: tuple[str, ...], kv_events: bool
) -> None:
    with worker(tmp_path, *SIM, "--sim-max-num-seqs=7", *flags) as running:
        (record,) = running.discovered()
        instance = msgspec.convert(json.loads(record.read_text())["value"], WorkerInstance)
        assert (instance.max_num_seqs, instance.kv_events) == (7, kv_events)
        assert is_serving(running, FLEET)


def test_after_the_drain_timeout_a_request_gets_its_error(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM, "--drain-timeout-s=0.2") as running:
        found = asyncio.run(ends(running, [request(0, 8000)], running.process.terminate))
        assert isinstance(found[0], WorkerLost)
        assert running.exit_code() == 0
        said = running.log.read_text()
    stages = re.findall(r"stop: ([\w ]+): (\w+)", said)
    assert stages == [
        ("withdraw", "done"),
        ("front doors", "done"),
        ("drain", "given"),
        ("cancel", "done"),
        ("engine", "done"),
        ("gRPC", "done"),
        ("discovery", "done"),
        ("traces", "done"),
        ("status", "done"),
    ]
    assert "1 requests were given up" in said


def test_a_stopping_worker_is_live_and_not_ready_and_a_second_signal_ends_it(
    tmp_path: Path,
) -> None:
    names = ("", KSERVE, "smollm2", "alias")
    with worker(tmp_path, *SIM, "--model-alias=alias") as running:
        assert {name: is_serving(running, name) for name in names} == dict.fromkeys(names, True)
        assert len(running.discovered()) == 1

        def stop_twice() -> None:
            running.process.terminate()
            wait_until(lambda: not running.is_ready())
            assert running.status("/live")[0] == 200
            status, text = running.status("/health")
            health = json.loads(text)
            assert (status, health["status"], health["live"]) == (503, "not_ready", True)
            assert (health["draining"], health["in_flight"]) == (True, 1)
            assert not any(is_serving(running, name) for name in names)
            wait_until(lambda: not running.discovered())
            running.process.terminate()

        with pytest.raises(ServingError):
            asyncio.run(ends(running, [request(0, 8000)], stop_twice))
        assert running.exit_code() == 128 + signal.SIGTERM


def test_when_the_engine_dies_requests_fail_and_the_exit_code_is_1(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM, "--sim-die-after-steps=20") as running:
        found = asyncio.run(ends(running, [request(0, 8000), request(1, 8000)], None))
        assert all(isinstance(end, WorkerLost) for end in found.values())
        assert running.exit_code() == 1
        assert not running.is_ready()


def test_an_engine_that_hangs_in_a_request_costs_it_one_error_and_the_worker_ends(
    tmp_path: Path,
) -> None:
    args = ("--sim-hang-after-steps=20", "--stall-timeout-s=0.5", "--canary-interval-s=0")
    with worker(tmp_path, *SIM, *args) as running:
        found = asyncio.run(ends(running, [request(0, 8000), request(1, 8000)], None))
        for end in found.values():
            assert isinstance(end, WorkerLost)
            assert "no step for 0.5 s" in end.message
        assert running.exit_code() == 1
        assert running.discovered() == []


def test_an_engine_that_hangs_while_nothing_runs_is_found_by_its_canary(tmp_path: Path) -> None:
    args = ("--sim-hang-after-steps=1", "--canary-interval-s=0.1", "--canary-timeout-s=0.3")
    with worker(tmp_path, *SIM, *args) as running:
        assert running.exit_code() == 1
        assert running.discovered() == []
        assert "stopping: the canary failed" in running.log.read_text()


def test_health_and_metrics_say_what_the_worker_did(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM, "--sim-block-size=4", "--canary-interval-s=0.2") as running:
        found = asyncio.run(ends(running, [request(0, 10), request(1, 12)], None))
        assert set(found.values()) == {FinishReason.LENGTH}
        asyncio.run(ends(running, [request(0, 5)], None))
        wait_until(lambda: running.metric(f'worker_canary_total{{{MODEL},outcome="ok"}}') >= 1)
        status, text = running.status("/health")
        health = json.loads(text)
        assert status == 200
        assert health.pop("version")
        assert health.pop("instance_id").startswith("smollm2-")
        assert 0 <= health.pop("last_step_age_s") < WAIT_S
        assert 0 <= health["canary"].pop("last_ok_age_s") < WAIT_S
        assert health.pop("load").keys() == {"running", "waiting", "kv_usage"}
        assert health == {
            "status": "ready",
            "live": True,
            "process": "worker",
            "model": "smollm2",
            "engine": "sim",
            "state": "ready",
            "draining": False,
            "in_flight": 0,
            "canary": {"failures": 0},
        }
        assert running.metric(f'worker_requests_total{{{MODEL},outcome="ok"}}') == 3
        assert running.metric(f"worker_output_tokens_total{{{MODEL}}}") == 27
        assert 15 <= running.metric(f"worker_frames_sent_total{{{MODEL}}}") <= 27
        assert running.metric(f"worker_engine_steps_total{{{MODEL}}}") >= 17
        assert running.metric(f"worker_prefix_cache_queries_tokens_total{{{MODEL}}}") >= 60
        assert running.metric(f"worker_prefix_cache_hits_tokens_total{{{MODEL}}}") >= 16
        assert running.metric(f"worker_requests_in_flight{{{MODEL}}}") == 0
        assert 'penstock_build_info{process="worker"' in running.status("/metrics")[1]


def test_a_traced_request_has_its_spans_below_the_callers(tmp_path: Path) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with otlp_collector() as collector:
        flags = (f"--otlp-endpoint={collector.endpoint}", "--drain-timeout-s=0.1")
        with worker(tmp_path, *SIM, *flags) as running:
            asked = [request(0, 20, traceparent=caller), request(1, 8)]
            asyncio.run(ends(running, asked, None))
            cut_off = [request(0, 8000, traceparent=caller)]
            asyncio.run(ends(running, cut_off, running.process.terminate))
            assert running.exit_code() == 0
    whole = [span for span in collector.spans if span.name == "worker.generate"]
    finished, lost = sorted(whole, key=lambda span: span.start_ns)
    for span in whole:
        assert span.service == "penstock-worker"
        assert (span.trace_id, span.parent_id) == tuple(caller.split("-")[1:3])
        parts = collector.children_of(span)
        assert [part.name for part in sorted(parts.values(), key=lambda it: it.end_ns)] == [
            "queue",
            "prefill",
            "decode",
        ]
        assert sum(part.duration_s for part in parts.values()) == pytest.approx(
            span.duration_s, abs=0.05
        )
    assert finished.attributes == {
        "gen_ai.request.model": "smollm2",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert (finished.failed, lost.failed) == (False, True)
    assert lost.attributes["error.type"] == "worker_lost"
    assert len(collector.spans) == 8


@pytest.mark.parametrize("flag", ["grpc-port", "metrics-port"])
def test_a_port_in_use_is_one_clear_line(flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal("--engine=sim", f"--{flag}={port}")
    assert f"127.0.0.1:{port}" in said
    assert f"--{flag}" in said


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((*SIM, "--", "--max-model-len", "5"), "simulated engine"),
        (("--sim-block-size=0", "--engine=sim"), "sim-block-size"),
        (("--probe-timeout-s=0",), "probe"),
        (("--canary-tokens=1,x",), "canary-tokens"),
        ((*SIM, "--canary-tokens=99999999"), "canary_tokens"),
        ((*SIM, "--otlp-endpoint=nowhere"), "--otlp-endpoint"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(args: tuple[str, ...], names: str) -> None:
    assert names in refusal(*args)


# --------------------------------------------------------------------------- the real engine
@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 120)
@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--max-modell-len", "5"), "--max-modell-len"),
        (("--max-model-len", "999999999"), "max_model_len"),
        (("--block-size", "48"), "--block-size"),
        (("--model", "other"), "--model"),
        (("--kv-cache-memory-bytes", "500T"), "--max-model-len"),
    ],
)
def test_wrong_vllm_arguments_are_one_clear_line(args: tuple[str, ...], names: str) -> None:
    assert names in refusal("--", *args, limit_s=VLLM_START_S)


@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 120)
def test_no_engine_process_outlives_a_killed_worker(tmp_path: Path) -> None:
    with worker(tmp_path, start_s=VLLM_START_S) as running:
        assert running.children
        running.process.kill()
        running.assert_no_child_is_left()


@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 120)
def test_a_killed_engine_fails_its_requests_and_ends_the_worker(tmp_path: Path) -> None:
    with worker(tmp_path, start_s=VLLM_START_S) as running:
        (engine,) = [child for child in running.children if "EngineCore" in child.name()]
        kill = engine.kill
        found = asyncio.run(ends(running, [request(0, 4000), request(1, 4000)], kill))
        assert all(isinstance(end, ServingError) for end in found.values())
        assert all(isinstance(end, WorkerLost) for end in found.values())
        assert running.exit_code() == 1
        running.assert_no_child_is_left()


@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 120)
def test_ctrl_c_in_a_terminal_lets_the_engine_finish_and_all_it_says_is_json(
    tmp_path: Path,
) -> None:
    with worker(tmp_path, "--log-format=json", start_s=VLLM_START_S) as running:

        def interrupt() -> None:
            # A terminal signals every process of the worker's group.
            for member in [psutil.Process(running.process.pid), *running.children]:
                if os.getpgid(member.pid) == os.getpgid(running.process.pid):
                    member.send_signal(signal.SIGINT)

        found = asyncio.run(ends(running, [request(0, 200)], interrupt))
        assert found == {0: FinishReason.LENGTH}
        assert running.exit_code() == 0
        running.assert_no_child_is_left()
        for line in running.log.read_text().splitlines():
            json.loads(line)
