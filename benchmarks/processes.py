"""Penstock's processes for a measurement: started, waited for, looked at, stopped."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT_S = 90.0
STOP_LIMIT_S = 40.0
MODEL = "sim"
FRONT = ("frontend", "--expect-model", MODEL, "--http-port", "0")
PENSTOCK = "cli.main"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One that is ready, after `start_s`; `ready` is its ready file, `log` what it writes."""

    name: str
    pid: int
    ready: dict[str, Any]
    log: Path
    start_s: float

    def errors(self) -> list[str]:
        """The lines that it has logged as errors, and those that are no log lines of ours."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line[:1] != "{" or json.loads(line)["level"] == "error"]


@contextmanager
def fleet(
    *,
    front: Sequence[str] = (),
    worker: Sequence[str] = (),
    workers: int = 1,
    vllm: Sequence[str] | None = None,
    front_module: str = PENSTOCK,
) -> Iterator[list[Process]]:
    """Run a front door, the first of the list, and workers of one model.

    They are simulated, unless `vllm` has arguments for the real engine. `front_module` is run as
    penstock is, in the place of its front door.
    """
    engine = ("--engine", "sim" if vllm is None else "vllm")
    behind = () if vllm is None else ("--", *vllm)
    of_worker = ("worker", "smollm2", *engine, "--model-name", MODEL, *worker)
    commands: dict[str, Sequence[str]] = {"front-door": (*FRONT, *front)}
    commands |= {f"worker-{number}": of_worker for number in range(workers)}
    with (
        tempfile.TemporaryDirectory() as folder,
        _running(Path(folder), commands, behind, {"front-door": front_module}) as processes,
    ):
        yield processes


@contextmanager
def another_front(beside: Process) -> Iterator[Process]:
    """Run one more front door for the workers of a fleet."""
    commands = {"another-front": FRONT}
    with _running(beside.log.parent, commands, (), {}) as (front,):
        yield front


@contextmanager
def gateway_before(front: Process, module: str = PENSTOCK) -> Iterator[Process]:
    """Run a gateway before a front door; `module` is run as penstock is, in its place."""
    how = ("gateway", "--target", front.ready["grpc"], "--http-port", "0")
    with _running(front.log.parent, {"gateway": how}, (), {"gateway": module}) as (gateway,):
        yield gateway


@contextmanager
def _running(
    folder: Path,
    commands: Mapping[str, Sequence[str]],
    behind: Sequence[str],
    modules: Mapping[str, str],
) -> Iterator[list[Process]]:
    started = {}
    for name, how in commands.items():
        command = ["-m", modules.get(name, PENSTOCK), "--parent-pid", str(os.getpid()), *how]
        after = behind if name.startswith("worker") else ()
        started[name] = (time.time(), _start(folder, name, command, after))
    try:
        yield [_ready(folder, name, *process) for name, process in started.items()]
    finally:
        for _, process in started.values():
            process.terminate()
        for _, process in started.values():
            _wait(process)


def cpu_s(pid: int) -> float:
    """Seconds on a CPU of a process's threads so far; to the nanosecond where Linux says so.

    The usual times of a process tick a hundred times a second (proc_pid_schedstat in Linux's
    Documentation/scheduler/sched-stats.rst).
    """
    found = [_thread_ns(it) for it in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if found:
        return sum(found) / 1e9
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _thread_ns(path: Path) -> int:
    try:
        return int(path.read_text().split()[0])
    except OSError:
        # The thread ended meanwhile.
        return 0


def _start(
    folder: Path, name: str, arguments: Sequence[str], behind: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start a penstock process with free ports; those of one `folder` find each other."""
    command = [sys.executable, *arguments, "--metrics-port", "0"]
    command += ["--ready-file", str(folder / f"{name}.json")]
    if "--target" not in arguments:
        command += ["--grpc-port", "0"]
        command += ["--discovery", "file", "--discovery-path", str(folder / "discovery")]
    command += ["--log-level", "warning", "--log-format", "json", *behind]
    # An installed package has its bytecode: a first start writes it, where the shell forbids that.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _ready(folder: Path, name: str, started_s: float, process: subprocess.Popen[bytes]) -> Process:
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    began = time.monotonic()
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit(f"{name} ended before it was ready:\n{log.read_text()}")
        if time.monotonic() - began > START_LIMIT_S:
            raise SystemExit(f"{name} was not ready within {START_LIMIT_S:g} s:\n{log.read_text()}")
        time.sleep(0.05)
    return Process(
        name=name,
        pid=process.pid,
        ready=json.loads(ready.read_text()),
        log=log,
        start_s=ready.stat().st_mtime - started_s,
    )


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
