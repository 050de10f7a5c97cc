"""Run as penstock is; the turns of its loop that take long go to the file FILE_VARIABLE names.

A turn is what the loop does before it looks at its sockets again. Each is a line: when it ended, in
monotonic seconds, the CPU time of the loop's thread, and how long it took by the clock, in ms.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import uvloop

from cli.main import main

FILE_VARIABLE = "PENSTOCK_BENCHMARK_TURNS"
LONG_MS = 1.0


def watched(make: Callable[[], uvloop.Loop], file: TextIO) -> uvloop.Loop:
    """Return a loop whose long turns are written down."""
    loop, busy_s, ended_s = make(), time.thread_time(), time.monotonic()

    def turn() -> None:
        nonlocal busy_s, ended_s
        now_s, cpu_ms = time.monotonic(), (time.thread_time() - busy_s) * 1e3
        took_ms = (now_s - ended_s) * 1e3
        if took_ms > LONG_MS:
            file.write(f"{now_s} {cpu_ms} {took_ms}\n")
        loop.call_soon(turn)
        busy_s, ended_s = time.thread_time(), time.monotonic()

    loop.call_soon(turn)
    return loop


if __name__ == "__main__":
    _make = uvloop.new_event_loop
    _file = open(os.environ[FILE_VARIABLE], "w", buffering=1)  # noqa: SIM115 - to the process's end
    uvloop.new_event_loop = lambda: watched(_make, _file)
    sys.exit(main())
