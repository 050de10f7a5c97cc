"""Whatever is killed, halted or closed, and whenever: no process is left behind."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.test_cli import FREE, PENSTOCK, SIM, Running, open_stream, penstock
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's"),
    pytest.mark.timeout(120),
]
SERVE = ("serve", "smollm2", *FREE)
GONE_S = 20.0


def assert_gone(family: list[psutil.Process]) -> None:
    left = psutil.wait_procs(family, timeout=GONE_S)[1]
    for process in left:
        process.kill()
    assert not left


@contextmanager
def starting(tmp_path: Path, children: int) -> Iterator[tuple[subprocess.Popen[bytes], list]]:
    """A `serve` that has at least so many children and is not ready, and those."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*PENSTOCK, *SERVE, *SIM, "--workers=2"], stdout=log, stderr=log)
    parent = psutil.Process(process.pid)
    try:
        wait_until(lambda: len(parent.children()) >= children, limit_s=40)
        yield process, parent.children()
    finally:
        process.kill()
        process.wait(GONE_S)


@pytest.mark.parametrize("children", [1, 3])
def test_a_parent_killed_during_its_start_leaves_nothing(tmp_path, children):
    with starting(tmp_path, children) as (parent, family):
        parent.kill()
        parent.wait(GONE_S)
        assert_gone(family)


def test_a_parent_stopped_during_its_start_leaves_nothing(tmp_path):
    with starting(tmp_path, 3) as (parent, family):
        parent.terminate()
        assert parent.wait(60) == 0
        assert_gone(family)


def start_stopping(one: Running) -> None:
    one.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping: SIGTERM" in one.log.read_text(), limit_s=10)


@pytest.mark.parametrize("how", ["kill", "again"])
def test_a_parent_that_ends_at_once_while_it_drains_leaves_nothing(tmp_path, how):
    with penstock(tmp_path, *SERVE, "--engine=sim", "--sim-speedup=0.01") as one:
        family = one.family()
        with open_stream(one, max_tokens=500):
            start_stopping(one)
            if how == "kill":
                one.process.kill()
            else:
                one.process.terminate()
            assert one.process.wait(GONE_S) == (
                -signal.SIGKILL if how == "kill" else 128 + signal.SIGTERM
            )
        assert_gone(family)


def test_a_child_killed_during_the_stop_does_not_come_back(tmp_path):
    with penstock(tmp_path, *SERVE, "--engine=sim", "--sim-speedup=0.01") as one:
        family = one.family()
        with open_stream(one, max_tokens=500):
            start_stopping(one)
            for process in family:
                process.kill()
            assert one.process.wait(GONE_S) == 0
        assert_gone(family)


@pytest.mark.parametrize("command", ["frontend", "worker"])
def test_a_halted_child_of_a_killed_parent_dies(tmp_path, command):
    with penstock(tmp_path, *SERVE, *SIM) as one:
        family = one.family()
        (halted,) = (process for process in family if command in process.cmdline())
        halted.suspend()
        one.process.kill()
        assert_gone(family)


# The first terminal that the leader of a session opens becomes its controlling one.
ON_TERMINAL = (
    "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execvp(sys.argv[2], sys.argv[2:])"
)


@contextmanager
def on_a_terminal(tmp_path: Path, *command: str) -> Iterator[tuple[Running, Callable[[], None]]]:
    """Run penstock as the leader of a terminal's session, and yield what closes the terminal."""
    ready, log = tmp_path / "ready.json", tmp_path / "log"
    terminal, inner = pty.openpty()
    launch = (sys.executable, "-c", ON_TERMINAL, os.ttyname(inner))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*launch, *command, f"--ready-file={ready}"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, limit_s=40)
        os.close(inner)
        yield Running(process=process, ready={}, log=log), lambda: os.close(terminal)
    finally:
        family = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait(GONE_S)
        psutil.wait_procs(family, timeout=GONE_S)
        print(log.read_text())


def test_a_closed_terminal_stops_everything_in_order(tmp_path):
    with on_a_terminal(tmp_path, *PENSTOCK, *SERVE, *SIM) as (one, close_terminal):
        family = one.family()
        close_terminal()
        assert one.process.wait(40) == 0
        assert_gone(family)
        assert "stopping: the terminal was closed" in one.log.read_text()
        assert "stop: workers: done" in one.log.read_text()


def test_started_with_nohup_it_outlives_the_terminal(tmp_path):
    with on_a_terminal(tmp_path, "nohup", *PENSTOCK, *SERVE, *SIM) as (one, close_terminal):
        close_terminal()
        assert one.stop() == 0
        assert "stopping: SIGTERM" in one.log.read_text()
