"""The processes vLLM starts: they die with the worker, and only the worker gets its signals.

vLLM leaves its engine processes alive, idle and holding gigabytes when the process that started
them is killed.
"""

import ctypes
import multiprocessing
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when `parent_pid`, its parent, is gone (Linux only).

    It is the end of the parent's starting thread that counts (prctl(2)), so that engines are
    started by the main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def guard_forked_children() -> None:
    """Make every process that this one forks from now on die with it.

    Each gets a process group of its own too: Ctrl-C in a terminal would otherwise stop the engine
    while the worker is still draining.
    """
    parents: list[int] = []

    def before() -> None:
        parents.append(os.getpid())

    def in_child() -> None:
        os.setpgid(0, 0)
        die_with_parent(parents.pop())

    os.register_at_fork(before=before, after_in_parent=parents.pop, after_in_child=in_child)


def guard_spawned_child() -> None:
    """Entry point in vLLM's plugin group `vllm.general_plugins`, which every process of it loads.

    Spawned processes start anew and know nothing of the hooks above. Does nothing in a process
    that was not started by another of the same program.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
