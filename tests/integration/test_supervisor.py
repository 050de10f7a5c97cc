"""Child processes under supervision, with real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import psutil
import pytest

from runtime.supervisor import Child, ChildFailed, ChildSpec, RestartPolicy, stop_all
from tests.waiting import eventually, wait_until

FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.05, stable_s=10, start_attempts=3)
READY = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch()\n"
FOREVER = READY + "print('up', flush=True)\ntime.sleep(600)"


@asynccontextmanager
async def child(tmp_path, code, policy=FAST):
    lines: list[str] = []
    ready = tmp_path / "ready"
    spec = ChildSpec(name="w", argv=(sys.executable, "-c", code, str(ready)), ready_file=ready)
    one = Child(spec, policy=policy, write=lines.append)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run())
        try:
            yield one, lines
        finally:
            await one.stop(10)


def pid_of(one: Child) -> int:
    assert one._process is not None
    return one._process.pid


async def test_lines_carry_the_childs_name(tmp_path):
    code = READY + (
        "sys.stdout.buffer.write(b'a\\nb\\xff\\nno end'); sys.stdout.flush()\ntime.sleep(600)"
    )
    async with child(tmp_path, code) as (one, lines):
        await eventually(lambda: len(lines) == 2, limit_s=20)
        await one.stop(5)
        assert lines == ["[w] a\n", "[w] b\ufffd\n", "[w] no end\n"]


async def test_a_killed_child_comes_back(tmp_path):
    async with child(tmp_path, FOREVER) as (one, lines):
        await eventually(lambda: len(lines) == 1, limit_s=20)
        os.kill(pid_of(one), signal.SIGKILL)
        await eventually(lambda: len(lines) == 2, limit_s=20)
        assert one.starts == 2


async def test_stop_ends_the_child_with_sigterm(tmp_path):
    code = READY + (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *a: (print('bye'), sys.exit()))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    async with child(tmp_path, code) as (one, lines):
        await eventually(lambda: len(lines) == 1, limit_s=20)
        await one.stop(10)
        assert lines == ["[w] up\n", "[w] bye\n"]
        assert one.starts == 1


async def test_a_child_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path):
    code = READY + (
        "import signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, flush=True)\ntime.sleep(600)"
    )
    async with child(tmp_path, code) as (one, lines):
        await eventually(lambda: len(lines) == 1, limit_s=20)
        grandchild = psutil.Process(int(lines[0].split()[1]))
        await one.stop(0.1)
        await eventually(lambda: gone(grandchild))


async def test_what_a_killed_child_started_does_not_outlive_it(tmp_path):
    code = READY + (
        "import subprocess\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, flush=True)\ntime.sleep(600)"
    )
    async with child(tmp_path, code) as (one, lines):
        await eventually(lambda: len(lines) == 1, limit_s=20)
        grandchild = psutil.Process(int(lines[0].split()[1]))
        os.kill(pid_of(one), signal.SIGKILL)
        await eventually(lambda: gone(grandchild))


@pytest.mark.parametrize(("code", "starts"), [("import sys; sys.exit(2)", 1), ("1/0", 3)])
async def test_a_child_that_cannot_start_is_given_up(tmp_path, code, starts):
    with pytest.RaisesGroup(ChildFailed) as caught:
        async with child(tmp_path, code) as (one, _):
            await asyncio.Event().wait()
    assert one.starts == starts
    failure = caught.value.exceptions[0]
    assert isinstance(failure, ChildFailed)
    assert failure.exit_code == (2 if starts == 1 else 1)


async def test_a_child_that_was_ready_once_is_never_given_up(tmp_path):
    async with child(tmp_path, READY + "sys.exit(1)") as (one, _):
        await eventually(lambda: one.starts > 4, limit_s=25)


def test_the_wait_between_starts_doubles_up_to_its_limit():
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=30)
    assert [policy.delay_s(n) for n in (1, 2, 3, 7, 1000)] == [0.5, 1, 2, 30, 30]


async def test_several_children_stop_together(tmp_path):
    async with child(tmp_path, FOREVER) as (one, _):
        await eventually(lambda: one.starts == 1)
        await stop_all([one], 5)
        await stop_all([one], 5)


PARENT = """
import subprocess, sys
child = "import os,sys,time; from runtime.process import die_with_parent; " \\
        "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
import os
subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], start_new_session=True).wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_dies_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        wait_until(lambda: gone(orphan), limit_s=10)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
