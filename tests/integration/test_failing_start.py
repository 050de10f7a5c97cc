"""A start that fails, or a crash loop, ends in one readable message with the remedy in it."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.test_cli import FREE, PENSTOCK, SIM, child_of, fails, penstock
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
SERVE = ("serve", "smollm2", *SIM)


def complaint(said: str) -> str:
    """The one message it ends with; fails if there is a traceback, or another message."""
    assert "Traceback" not in said
    (last,) = (line for line in said.splitlines() if line.startswith("penstock: error: "))
    assert said.endswith(last + "\n")
    return last


@pytest.mark.parametrize("flag", ["grpc-port", "http-port", "metrics-port"])
def test_a_port_that_another_penstock_has_is_named_with_who_has_it(tmp_path, flag):
    with penstock(tmp_path, "frontend", *FREE, f"--discovery-path={tmp_path}/d") as other:
        port = other.ready[flag.partition("-")[0]].rpartition(":")[2]
        free = [name for name in FREE if not name.startswith(f"--{flag}")]
        code, said = fails(*SERVE, *free, f"--{flag}={port}")
    assert code == 2
    message = complaint(said)
    assert f"127.0.0.1:{port}: Address already in use" in message
    assert f"--{flag}" in message
    if sys.platform.startswith("linux"):
        assert f"by process {other.process.pid} " in message


def test_a_second_group_does_not_slip_in_on_the_ports_of_the_first(tmp_path):
    discovery = f"--discovery-path={tmp_path}/d"
    with penstock(tmp_path, "frontend", *FREE, discovery, "--processes=2") as first:
        ports = [
            f"--{name}-port={first.ready[name].rpartition(':')[2]}" for name in ("grpc", "http")
        ]
        code, said = fails("frontend", *ports, FREE[2], discovery, "--processes=2")
    assert code == 2
    assert "Address already in use" in complaint(said)


@pytest.fixture
def without_vllm(tmp_path) -> dict[str, str]:
    """The environment of an installation that is this one without vLLM and torch."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("vllm", "torch", "__editable__")) and entry.suffix != ".pth":
            (installed / entry.name).symlink_to(entry)
    return os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{installed}"}


@pytest.mark.parametrize(("command", "ports"), [("serve", FREE), ("worker", FREE[::2])])
def test_without_an_engine_the_extra_to_install_is_named(without_vllm, command, ports):
    done = subprocess.run(
        # -S: no site-packages, so that only what the environment names is there.
        [sys.executable, "-S", *PENSTOCK[1:], command, "smollm2", *ports],
        capture_output=True,
        timeout=60,
        env=without_vllm,
        check=False,
    )
    message = complaint(done.stderr.decode())
    assert done.returncode == 2
    assert "vLLM is not installed" in message
    assert "penstock[worker-cpu]" in message


def test_a_model_that_a_worker_cannot_read_is_named_in_the_last_line(tmp_path, model_folder):
    model = tmp_path / "broken"
    model.mkdir()
    for file in model_folder.iterdir():
        (model / file.name).symlink_to(file)
    (model / "config.json").unlink()
    (model / "config.json").write_text("{oops")
    code, said = fails("serve", str(model), *SIM, *FREE)
    assert code == 2
    message = [line for line in said.splitlines() if line.startswith("penstock: error: ")][-1]
    assert f"broken-0 refuses its configuration: cannot read {model}/config.json" in message
    assert "Traceback" not in said


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    code, said = fails(*SERVE, *FREE, f"--cache-dir={os.devnull}/x")
    assert code == 2
    message = complaint(said)
    assert f" in {os.devnull}/x/models: Not a directory" in message
    assert "--cache-dir" in message


@contextmanager
def running(tmp_path: Path, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*PENSTOCK, *args], stdout=out, stderr=out)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait(20)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "worker" in child.cmdline()]
    except psutil.Error:
        return []


def test_a_worker_that_is_killed_while_it_starts_speaks_of_memory(tmp_path):
    with running(tmp_path, *SERVE, *FREE) as (process, log):
        killed: set[int] = set()

        def kill_workers() -> bool:
            for worker in workers_of(process):
                if worker.pid not in killed:
                    killed.add(worker.pid)
                    worker.kill()
            return process.poll() is not None

        wait_until(kill_workers, limit_s=100)
        message = complaint(log.read_text())
    assert process.returncode == 1
    assert len(killed) == 3
    assert "smollm2-0 did not become ready in 3 attempts" in message
    assert (
        "was killed (SIGKILL), most often by the kernel for lack of memory: take a smaller"
        in message
    )
    assert "--max-model-len" in message


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_crash_loop_ends_serve_with_its_own_code_and_reason(tmp_path, log_format):
    flags = (*SIM, *FREE, "--restart-limit=1", f"--log-format={log_format}")
    with penstock(tmp_path, "serve", "smollm2", *flags) as one:
        child_of(one, "worker").kill()
        wait_until(lambda: one.log.read_text().count("ready: smollm2 on") == 2, limit_s=40)
        child_of(one, "worker").kill()
        assert one.process.wait(60) == 3
        last = one.log.read_text().splitlines()[-1]
    if log_format == "json":
        entry = json.loads(last)
        assert entry["level"] == "error"
        last = entry["message"]
    assert "smollm2-0 is in a crash loop: it died 2 times in" in last
    assert "--restart-limit" in last
