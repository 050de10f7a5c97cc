"""`penstock worker` as a process: starts one, asks it, and knows how its requests ended."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from runtime.grpc_client import ClientStream, RpcChannel
from tests.waiting import wait_until
from wire.frames import FRAMES_HEADER, read_frame
from wire.pool import KSERVE, rpc_types
from wire.sampling import Sampling
from wire.token_contract import encode_token_request
from wire.tokens import TokenDelta, TokenRequest

PENSTOCK = (sys.executable, "-P", "-m", "cli.main")
SIM = ("--engine=sim", "--sim-speedup=1")
WAIT_S = 50.0  # below pytest's own limit


class Running:
    """A worker that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.ready = ready
        self.log = log
        self.children = psutil.Process(process.pid).children(recursive=True)

    def status(self, page: str) -> tuple[int, str]:
        """HTTP status and text of a page of the status port; (0, "") when nobody answers."""
        try:
            with urllib.request.urlopen(self.ready["metrics"] + page, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def is_ready(self) -> bool:
        return self.status("/ready")[0] == 200

    def metric(self, sample: str) -> float:
        """The value of one sample, named as in the exposition without its prefix."""
        (found,) = (
            float(line.split()[-1])
            for line in self.status("/metrics")[1].splitlines()
            if line.startswith(f"penstock_{sample} ")
        )
        return found

    def discovered(self) -> list[Path]:
        """The records that front doors find this worker by."""
        return list((self.log.parent / "discovery").glob("*/*.json"))

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


def request(slot: int, max_tokens: int, *, traceparent: str | None = None) -> Any:
    asked = TokenRequest(
        request_id="a",
        token_ids=[500] * 20,
        sampling=Sampling(max_tokens=max_tokens, ignore_eos=True),
        traceparent=traceparent,
    )
    return encode_token_request(asked, "smollm2", slot=slot)


async def ends(running: Running, requests: list[Any], then: Any) -> dict[int, Any]:
    """Send requests, do `then` in a thread once each has begun; return how each slot ended."""
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
                    act, then = then, None
                    await asyncio.to_thread(act)
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


def refusal(*args: str, limit_s: float = WAIT_S) -> str:
    command = [*PENSTOCK, "worker", "smollm2", "--grpc-port=0", "--metrics-port=0", *args]
    done = subprocess.run(command, capture_output=True, timeout=limit_s, check=False)
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return said.splitlines()[-1]
