"""The processes vLLM starts: they die with the worker, and only the worker gets its signals.

vLLM leaves its engine processes alive, idle and holding gigabytes when the process that started
them is killed.
"""

import multiprocessing
import os

from runtime.process import die_with_parent
from worker.vllm_logs import log_printed_lines


def guard_forked_children() -> None:
    """Make every process that this one forks from now on die with it.

    Each gets a process group of its own too: Ctrl-C in a terminal would otherwise stop the engine
    while the worker is still draining. What it prints becomes part of the log.
    """
    parents: list[int] = []

    def before() -> None:
        parents.append(os.getpid())

    def in_child() -> None:
        os.setpgid(0, 0)
        die_with_parent(parents.pop())
        log_printed_lines()

    os.register_at_fork(before=before, after_in_parent=parents.pop, after_in_child=in_child)


def guard_spawned_child() -> None:
    """Entry point in vLLM's plugin group `vllm.general_plugins`, which its processes all load.

    Spawned processes start anew and know nothing of the hooks above. Does nothing in a process
    that was not started by another of the same program.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
        log_printed_lines()
