"""Run as penstock is; the turns of its loop that take long go to the file FILE_VARIABLE names.

A turn is what the loop does before it looks at its sockets again. Each is a line: when it ended, in
monotonic seconds, and the CPU time of the loop's thread, in ms.
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
    loop, ended_s = make(), time.thread_time()

    def turn() -> None:
        nonlocal ended_s
        took_ms = (time.thread_time() - ended_s) * 1e3
        if took_ms > LONG_MS:
            file.write(f"{time.monotonic()} {took_ms}\n")
        loop.call_soon(turn)
        ended_s = time.thread_time()

    loop.call_soon(turn)
    return loop


if __name__ == "__main__":
    _make = uvloop.new_event_loop
    _file = open(os.environ[FILE_VARIABLE], "w", buffering=1)  # noqa: SIM115 - to the process's end
    uvloop.new_event_loop = lambda: watched(_make, _file)
    sys.exit(main())
