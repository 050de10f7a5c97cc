"""One real `penstock serve` for the whole run: real vLLM, the real bundled model, real sockets."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

START_LIMIT_S = 300.0
MODEL = "smollm2"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running `penstock serve`."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    discovery: Path

    def worker(self) -> psutil.Process:
        """The worker child process."""
        for child in psutil.Process(self.process.pid).children():
            if "worker" in child.cmdline():
                return child
        raise LookupError("serve has no worker child")

    def worker_status_url(self) -> str:
        """The status URL the worker registered in the discovery folder."""
        (record,) = (self.discovery / "instances").glob("*.json")
        value = json.loads(record.read_text())["value"]
        instance = json.loads(value) if isinstance(value, str) else value
        url: str = instance["status_url"]
        return url


def wait_for_file(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Return the ready file's content once it exists; fails when the process ends first."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            if path.exists():
                ready: dict[str, str] = json.loads(path.read_text())
                return ready
        else:
            break
    pytest.fail(f"penstock did not become ready:\n{log.read_text()[-5000:]}")


@contextmanager
def serving(
    folder: Path, *flags: str, engine: Sequence[str], model: str = MODEL
) -> Iterator[Served]:
    """`penstock serve MODEL`, ready; killed with all its children at the end."""
    log_path, ready_path, discovery = folder / "log", folder / "ready.json", folder / "discovery"
    command = [str(Path(sys.executable).with_name("penstock")), "serve", model]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command += ["--ready-file", str(ready_path), "--discovery-path", str(discovery)]
    command += [*flags, "--", *engine]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        ready = wait_for_file(ready_path, process, log_path)
        yield Served(process=process, grpc=ready["grpc"], http=ready["http"], discovery=discovery)
    finally:
        family = [psutil.Process(process.pid)] if process.poll() is None else []
        family += [child for member in family for child in member.children(recursive=True)]
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        _, alive = psutil.wait_procs(family, timeout=15)
        for orphan in alive:
            orphan.kill()
        print(log_path.read_text()[-20000:])
        assert not alive, f"processes left behind: {alive}"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One front door and one worker for all tests that need no more."""
    # 64 streams take their time on two cores, more so beside other work.
    flags = ("--drain-timeout-s", "240", "--tool-call-parser", "hermes")
    with serving(
        tmp_path_factory.mktemp("serve"), *flags, engine=("--max-model-len", "2048")
    ) as it:
        yield it
