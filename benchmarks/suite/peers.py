"""Other servers for the same load, where they are installed."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from benchmarks.processes import ROOT
from benchmarks.suite.jobs import Case
from benchmarks.suite.targets import WORD, Target, word_id
from worker.models import resolve_model

START_LIMIT_S = 180.0
# The mocker's decode step: 5.6 ms alone, 12 ms for 128 sequences.
MOCKER_STEP_MS, MOCKER_STEP_MS_PER_SEQUENCE = 5.6, 0.05
# Its KServe front takes the answer's length from a template that no flag of it reaches.
LAUNCHER = """
import functools, sys
import dynamo.frontend.main as main
main.EntrypointArgs = functools.partial(main.EntrypointArgs, template_file=sys.argv.pop(1))
main.main()
"""


@contextmanager
def dynamo(python: str, interval_s: float, case: Case) -> Iterator[Target]:
    """Run NVIDIA Dynamo: one mocker, an HTTP and a KServe front end, found through files."""
    model = str(_model())
    step_ms = MOCKER_STEP_MS + MOCKER_STEP_MS_PER_SEQUENCE * case.streams
    http, grpc, metrics = _free_ports(3)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        template = Path(folder, "template.json")
        template.write_text(
            json.dumps({"model": "sim", "temperature": 0.7, "max_completion_tokens": case.tokens})
        )
        found = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": folder, "HF_HUB_OFFLINE": "1"}
        found |= {"DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_EVENT_PLANE_HOST": "127.0.0.1"}
        found |= {"DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
        mocker = ["-m", "dynamo.mocker", "--model-path", model, "--model-name", "sim"]
        mocker += ["--block-size", "16", "--speedup-ratio", f"{step_ms / 1e3 / interval_s:.4f}"]
        kserve = ["-c", LAUNCHER, str(template), "--http-port", str(grpc), "--kserve-grpc-server"]
        kserve += ["--grpc-metrics-port", str(metrics), "--router-mode", "kv"]
        web = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(http)]
        run = _Runner(python, found, Path(folder), stack)
        run.start("mocker", mocker)
        web_pid = run.start("http", [*web, "--router-mode", "kv"])
        grpc_pid = run.start("grpc", kserve)
        for port in (http, metrics):
            run.wait_for_model(port, "sim")
        yield Target(
            name="dynamo",
            grpc=f"127.0.0.1:{grpc}",
            http=f"http://127.0.0.1:{http}",
            grpc_pids={"front": grpc_pid},
            http_pids={"front": web_pid},
            asks={"model": "sim", "stream_input": "streaming", "sampling_input": False},
        )


@contextmanager
def vllm(python: str, arguments: Sequence[str]) -> Iterator[Target]:
    """Run vLLM's own OpenAI server."""
    (port,) = _free_ports(1)
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(_model())]
    command += ["--served-model-name", "sim", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = _Runner(python, {}, Path(folder), stack)
        pid = run.start("vllm", [*command, "--disable-log-stats", *arguments])
        run.wait_for_model(port, "sim")
        yield Target(
            name="vllm",
            http=f"http://127.0.0.1:{port}",
            http_pids={"front": pid},
            asks={"model": "sim", "word": WORD, "word_id": word_id()},
        )


def _model() -> Path:
    return resolve_model("smollm2", cache_dir=None, progress=lambda _: None).path


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [it.getsockname()[1] for it in sockets]
    finally:
        for it in sockets:
            it.close()


class _Runner:
    """Processes of a peer, whose output goes to files and which end with the stack."""

    def __init__(
        self, python: str, environment: dict[str, str], folder: Path, stack: ExitStack
    ) -> None:
        self._python = python
        self._environment = {**os.environ, **environment}
        self._folder = folder
        self._stack = stack
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> int:
        """Start one; returns its pid."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [self._python, *command], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        self._running[name] = process
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process.pid

    def wait_for_model(self, port: int, model: str) -> None:
        """Return once the server lists the model."""
        limit_s = time.monotonic() + START_LIMIT_S
        while not _lists(port, model):
            for name, process in self._running.items():
                if process.poll() is not None or time.monotonic() > limit_s:
                    log = (self._folder / f"{name}.log").read_text()
                    sys.exit(f"{name} is not ready:\n{log[-3000:]}")
            time.sleep(0.2)


def _lists(port: int, model: str) -> bool:
    try:
        return model in httpx2.get(f"http://127.0.0.1:{port}/v1/models", timeout=2).text
    except httpx2.TransportError:
        return False
