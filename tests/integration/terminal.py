"""The console command as a person meets it, on a terminal, and as a script does, on pipes."""

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

PENSTOCK = (sys.executable, "-P", "-m", "cli.main")
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[=>])|\r")
# The terminal must be the controlling one, or Ctrl-C is no signal.
_TAKE_TERMINAL = (
    f"import fcntl, os, sys; fcntl.ioctl(0, {termios.TIOCSCTTY});"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """What `process` wrote to its terminal; escapes are left out of `shown`."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._read = b""
        self._looked = 0

    @property
    def shown(self) -> str:
        return _ESCAPES.sub("", self._read.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, pattern: str, *, limit_s: float = 20.0) -> re.Match[str]:
        """Read until `pattern` is found behind what the last call found."""
        deadline_s = time.monotonic() + limit_s
        while (found := re.compile(pattern).search(self.shown, self._looked)) is None:
            if not self._read_some(deadline_s):
                raise AssertionError(f"{pattern!r} is not in: {self.shown[self._looked :]!r}")
        self._looked = found.end()
        return found

    def wait(self, *, limit_s: float = 20.0) -> int:
        """Read until the process has ended; returns its exit code."""
        deadline_s = time.monotonic() + limit_s
        while self._read_some(deadline_s):
            pass
        return self.process.wait(max(0.1, deadline_s - time.monotonic()))

    def _read_some(self, deadline_s: float) -> bool:
        ready, _, _ = select.select(
            [self._descriptor], [], [], max(0, deadline_s - time.monotonic())
        )
        try:
            more = os.read(self._descriptor, 65536) if ready else b""
        except OSError:  # Linux says EIO once nobody has the other side open
            more = b""
        self._read += more
        return bool(more)


@contextmanager
def on_terminal(*args: str, **environment: str) -> Iterator[Terminal]:
    """Run penstock on a terminal of 80 columns."""
    ours, theirs = os.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 80))
        # A terminal that never says where the cursor is, unlike a real one.
        answers_nothing = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, *PENSTOCK, *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=os.environ | answers_nothing | environment,
        )
    finally:
        os.close(theirs)
    terminal = Terminal(process, ours)
    try:
        yield terminal
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(10)
        os.close(ours)
        print(terminal.shown)


async def on_pipes(*args: str) -> asyncio.subprocess.Process:
    """Start penstock on pipes."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *PENSTOCK, *args, stdin=pipe, stdout=pipe, stderr=pipe
    )


async def run_on_pipes(*args: str, text: str = "") -> tuple[int, str, str]:
    """Run penstock to its end; returns its exit code, output and complaints."""
    process = await on_pipes(*args)
    async with asyncio.timeout(40):
        out, err = await process.communicate(text.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
