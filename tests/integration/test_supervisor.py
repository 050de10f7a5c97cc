"""Child processes under supervision, with real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

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
    spec = ChildSpec(
        name="w",
        argv=(sys.executable, "-c", code, str(ready)),
        ready_file=ready,
        if_no_memory="buy some",
    )
    one = Child(spec, policy=policy, write=lines.append)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run())
        try:
            yield one, lines
        finally:
            await one.stop(10)


def pid_of(one: Child) -> int:
    assert one.pid is not None
    return one.pid


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


async def gives_up(tmp_path, code: str, policy: RestartPolicy = FAST) -> tuple[Child, ChildFailed]:
    """Run `code` until it is given up; returns the child and why."""
    with pytest.RaisesGroup(ChildFailed) as caught:
        async with child(tmp_path, code, policy) as (one, _):
            await asyncio.Event().wait()
    failure = caught.value.exceptions[0]
    assert isinstance(failure, ChildFailed)
    return one, failure


async def test_a_wrong_configuration_is_not_tried_again_and_its_complaint_is_quoted(tmp_path):
    code = "import sys; print('penstock: error: --x is wrong'); print('bye'); sys.exit(2)"
    one, failure = await gives_up(tmp_path, code)
    assert one.starts == 1
    assert failure.exit_code == 2
    assert failure.message == "w refuses its configuration: --x is wrong"


# A start that takes longer than a stable run is still a start that failed.
@pytest.mark.parametrize("policy", [FAST, replace(FAST, stable_s=0)])
async def test_a_child_that_never_gets_ready_is_given_up_and_its_last_error_is_quoted(
    tmp_path, policy
):
    one, failure = await gives_up(tmp_path, "1/0", policy)
    assert one.starts == 3
    assert failure.exit_code == 1
    assert "3 attempts" in failure.message
    assert failure.message.endswith("exit code 1: ZeroDivisionError: division by zero")


async def test_a_child_that_was_ready_and_keeps_dying_is_a_crash_loop(tmp_path):
    policy = replace(FAST, restart_limit=4, stable_s=0)
    one, failure = await gives_up(tmp_path, READY + "raise ValueError('oh')", policy)
    assert one.starts == 5
    assert failure.exit_code == 3
    assert "crash loop: it died 5 times" in failure.message
    assert failure.message.endswith("exit code 1: ValueError: oh")


async def test_deaths_outside_the_window_do_not_count(tmp_path):
    policy = replace(FAST, restart_limit=0, restart_window_s=0)
    async with child(tmp_path, READY + "sys.exit(1)", policy) as (one, _):
        await eventually(lambda: one.starts > 4, limit_s=25)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
        ("raise MemoryError('no more')", "exit code 1: MemoryError: no more"),
        ("sys.exit('DefaultCPUAllocator: can\\'t allocate memory')", "can't allocate memory"),
        ("sys.exit('Failed core proc(s): {\\'EngineCore\\': -9}')", "'EngineCore': -9}"),
    ],
)
async def test_a_lack_of_memory_is_called_so_with_what_to_do(tmp_path, end, told):
    _, failure = await gives_up(tmp_path, READY + end, replace(FAST, restart_limit=0))
    assert told in failure.message
    assert failure.message.endswith(": buy some")


async def test_a_command_that_cannot_be_started_is_tried_again(tmp_path):
    ready = tmp_path / "ready"
    spec = ChildSpec(name="w", argv=(str(tmp_path / "nothing"),), ready_file=ready)
    with pytest.raises(ChildFailed, match="nothing: No such file"):
        await Child(spec, policy=FAST, write=str).run()


async def test_a_halted_child_stops_in_order(tmp_path):
    code = READY + (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *a: (print('bye'), sys.exit()))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    async with child(tmp_path, code) as (one, lines):
        await eventually(lambda: len(lines) == 1, limit_s=20)
        os.kill(pid_of(one), signal.SIGSTOP)
        await one.stop(20)
        assert lines[-1] == "[w] bye\n"


async def test_a_stop_while_the_command_is_being_started_reaches_it(tmp_path):
    async with child(tmp_path, FOREVER) as (one, _):
        await eventually(lambda: one.starts == 1)
        assert one.pid is None  # the process is being made
        await asyncio.wait_for(one.stop(25), 20)


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
