"""`penstock worker` as a process: how it ends, and that it takes everything along."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.errors import ServingError, WorkerLost
from runtime.grpc_client import ClientStream, RpcChannel
from tests.waiting import wait_until
from wire.frames import FRAMES_HEADER, read_frame
from wire.pool import KSERVE, rpc_types
from wire.sampling import Sampling
from wire.token_contract import encode_token_request
from wire.tokens import FinishReason, TokenDelta, TokenRequest

PENSTOCK = (sys.executable, "-P", "-m", "cli.main")
SIM = ("--engine=sim", "--sim-speedup=1")
WAIT_S = 30.0
VLLM_START_S = 120.0


class Running:
    """A worker that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.ready = ready
        self.log = log
        self.children = psutil.Process(process.pid).children(recursive=True)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.ready["metrics"] + "/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)

    def assert_no_child_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.children, timeout=10)
        assert not alive


@contextmanager
def worker(tmp_path: Path, *args: str, start_s: float = WAIT_S) -> Iterator[Running]:
    ready, log = tmp_path / "ready.json", tmp_path / "log"
    command = [*PENSTOCK, "worker", "smollm2", "--grpc-port=0", "--metrics-port=0"]
    command += [f"--ready-file={ready}", f"--discovery-path={tmp_path / 'discovery'}", *args]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, limit_s=start_s)
        assert process.poll() is None, log.read_text()
        yield Running(process, json.loads(ready.read_text()), log)
    finally:
        process.kill()
        process.wait(WAIT_S)
        print(log.read_text()[-8000:])


def request(slot: int, max_tokens: int) -> Any:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    asked = TokenRequest(request_id="a", token_ids=[500] * 20, sampling=sampling)
    return encode_token_request(asked, "smollm2", slot=slot)


async def ends(running: Running, requests: list[Any], then: Any) -> dict[int, Any]:
    """Send requests, do `then` once each has begun, and return how each slot ended."""
    channel = RpcChannel(running.ready["grpc"], rpc_types=rpc_types)
    metadata = {FRAMES_HEADER: "1"}
    found: dict[int, Any] = {}
    begun: set[int] = set()
    try:
        async with (
            asyncio.timeout(WAIT_S),
            channel.stream(KSERVE, "ModelStreamInfer", metadata=metadata) as stream,
        ):
            for message in requests:
                stream.send(message)
            while len(found) < len(requests):
                await _read(stream, found, begun)
                if then is not None and len(begun) == len(requests):
                    then()
                    then = None
    finally:
        await channel.close()
    return found


async def _read(stream: ClientStream, found: dict[int, Any], begun: set[int]) -> None:
    for slot, row in read_frame(await anext(aiter(stream))):
        begun.add(slot)
        end = row.finish_reason if isinstance(row, TokenDelta) else row
        if end is not None:
            assert slot not in found
            found[slot] = end


def test_sigterm_lets_a_running_stream_finish(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM) as running:
        assert running.is_ready()
        stop = running.process.terminate
        found = asyncio.run(ends(running, [request(0, 150), request(1, 200)], stop))
        assert found == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}
        assert running.exit_code() == 0


def test_after_the_drain_timeout_a_request_gets_its_error(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM, "--drain-timeout-s=0.2") as running:
        found = asyncio.run(ends(running, [request(0, 8000)], running.process.terminate))
        assert isinstance(found[0], WorkerLost)
        assert running.exit_code() == 0


def test_when_the_engine_dies_requests_fail_and_the_exit_code_is_1(tmp_path: Path) -> None:
    with worker(tmp_path, *SIM, "--sim-die-after-steps=20") as running:
        found = asyncio.run(ends(running, [request(0, 8000), request(1, 8000)], None))
        assert all(isinstance(end, WorkerLost) for end in found.values())
        assert running.exit_code() == 1
        assert not running.is_ready()


def test_an_engine_that_hangs_is_found_by_the_probe(tmp_path: Path) -> None:
    args = ("--sim-hang-after-steps=20", "--probe-interval-s=0.1", "--probe-timeout-s=0.3")
    with worker(tmp_path, *SIM, *args) as running:
        found = asyncio.run(ends(running, [request(0, 8000)], None))
        assert isinstance(found[0], WorkerLost)
        assert running.exit_code() == 1


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((*SIM, "--", "--max-model-len", "5"), "simulated engine"),
        (("--sim-block-size=0", "--engine=sim"), "sim-block-size"),
        (("--probe-timeout-s=0",), "probe"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(args: tuple[str, ...], names: str) -> None:
    assert names in refusal(*args)


def refusal(*args: str) -> str:
    command = [*PENSTOCK, "worker", "smollm2", "--grpc-port=0", "--metrics-port=0", *args]
    done = subprocess.run(command, capture_output=True, timeout=WAIT_S + 30, check=False)
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


# --------------------------------------------------------------------------- the real engine
@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 60)
@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--max-modell-len", "5"), "--max-modell-len"),
        (("--max-model-len", "999999999"), "max_model_len"),
        (("--block-size", "48"), "--block-size"),
        (("--model", "other"), "--model"),
    ],
)
def test_wrong_vllm_arguments_are_one_clear_line(args: tuple[str, ...], names: str) -> None:
    assert names in refusal("--", *args)


@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 60)
def test_no_engine_process_outlives_a_killed_worker(tmp_path: Path) -> None:
    with worker(tmp_path, start_s=VLLM_START_S) as running:
        assert running.children
        running.process.kill()
        running.assert_no_child_is_left()


@pytest.mark.vllm
@pytest.mark.timeout(VLLM_START_S + 60)
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
@pytest.mark.timeout(VLLM_START_S + 60)
def test_ctrl_c_in_a_terminal_lets_the_engine_finish(tmp_path: Path) -> None:
    with worker(tmp_path, start_s=VLLM_START_S) as running:

        def interrupt() -> None:
            # A terminal signals every process of the worker's group.
            for member in [psutil.Process(running.process.pid), *running.children]:
                if os.getpgid(member.pid) == os.getpgid(running.process.pid):
                    member.send_signal(signal.SIGINT)

        found = asyncio.run(ends(running, [request(0, 200)], interrupt))
        assert found == {0: FinishReason.LENGTH}
        assert running.exit_code() == 0
        running.assert_no_child_is_left()
