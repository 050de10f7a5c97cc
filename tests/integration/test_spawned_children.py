"""Processes that vLLM spawns, as it does on a GPU, die with the worker that started them."""

import multiprocessing
import signal
import subprocess
import sys

import psutil

PARENT = """
import multiprocessing, time
from importlib.metadata import entry_points

def child(pids):
    (guard,) = entry_points(group="vllm.general_plugins", name="penstock")
    guard.load()()
    pids.put(multiprocessing.current_process().pid)
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pids = context.Queue()
    context.Process(target=child, args=(pids,)).start()
    print(pids.get(timeout=30), flush=True)
    time.sleep(60)
"""


def test_a_spawned_engine_process_dies_with_a_killed_worker(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([child], timeout=10)
        assert not alive


def test_a_process_that_nobody_spawned_is_left_alone() -> None:
    assert multiprocessing.parent_process() is None
    code = "import worker.vllm_child as v; v.guard_spawned_child(); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "alive\n"
