"""Signals in two stages, the ordered stop, counting what is in flight, the ready file."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import InvalidConfig
from runtime.in_flight import InFlight
from runtime.lifecycle import Stage, StopRequest, run_stages, stop_on_signals
from runtime.ready_file import remove_ready_file, write_ready_file


async def test_the_first_signal_asks_for_the_stop():
    stop = StopRequest()
    with stop_on_signals(stop, hard_limit_s=60):
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await stop.wait() == "SIGTERM"
    stop.request("later")
    assert stop.why == "SIGTERM"


TWICE = """
import asyncio, signal, sys
from runtime.lifecycle import StopRequest, stop_on_signals
async def main():
    stop = StopRequest()
    with stop_on_signals(stop, hard_limit_s=float(sys.argv[1]),
                         at_forced_exit=lambda: print("forced", flush=True)):
        signal.raise_signal(signal.SIGINT)
        await stop.wait()
        if sys.argv[2] == "twice":
            signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize(("limit_s", "times"), [("60", "twice"), ("0.05", "once")])
def test_a_second_signal_or_a_hanging_stop_ends_the_process(limit_s, times):
    done = subprocess.run(
        [sys.executable, "-c", TWICE, limit_s, times], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == b"forced\n"


async def test_stages_run_in_order_and_none_stops_a_later_one(caplog):
    caplog.set_level(logging.INFO, "runtime")
    ran: list[str] = []

    async def note(name: str) -> None:
        ran.append(name)

    async def fail() -> None:
        raise ValueError("oh")

    await run_stages(
        [
            Stage(name="first", action=lambda: note("first")),
            Stage(name="broken", action=fail),
            Stage(name="hanging", action=asyncio.Event().wait, limit_s=0.01),
            Stage(name="last", action=lambda: note("last")),
        ]
    )
    assert ran == ["first", "last"]
    lines = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    for line, outcome in zip(lines, ("done", "failed", "given up", "done"), strict=True):
        assert outcome in line


async def test_in_flight_work_is_waited_for_with_a_limit():
    work = InFlight()
    assert await work.wait_zero(0.01)
    with work.one(), work.one():
        assert work.count == 2
        assert not await work.wait_zero(0.01)
    assert await work.wait_zero(None)


def test_the_ready_file_appears_whole_and_goes(tmp_path):
    path = tmp_path / "new" / "ready.json"
    write_ready_file(path, {"grpc": "127.0.0.1:1", "models": ["m"]})
    assert json.loads(path.read_text()) == {
        "pid": os.getpid(),
        "grpc": "127.0.0.1:1",
        "models": ["m"],
    }
    assert list(path.parent.iterdir()) == [path]
    remove_ready_file(path)
    remove_ready_file(path)
    assert not path.exists()


def test_a_ready_file_that_cannot_be_written_is_a_configuration_error():
    with pytest.raises(InvalidConfig) as caught:
        write_ready_file(Path("/proc/nowhere/ready.json"), {})
    assert caught.value.param == "ready_file"
