"""Runs child processes: restarts with backoff up to a limit, and an ordered stop."""

import asyncio
import io
import logging
import os
import re
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runtime.child_output import ChildOutput
from runtime.errors import Code, ServingError

_LOG = logging.getLogger(__name__)
FAILED_EXIT = 1
# What a process of ours exits with when a flag, variable, file or model reference is wrong.
CONFIG_EXIT = 2
CRASH_LOOP_EXIT = 3
_CHUNK_BYTES = 64 * 1024
# Python's, torch's and CUDA's words for it; and vLLM's, of a process of its own that was killed.
_NO_MEMORY = re.compile(r"out ?of ?memory|n[o']t allocate|MemoryError|'\w+': -9\b", re.IGNORECASE)


class ChildFailed(ServingError):
    """A child cannot be kept running; its parent shall end with `exit_code`."""

    code = Code.FAILED_PRECONDITION
    reason = "child_failed"

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a child is started again. Times in seconds.

    The wait doubles from `first_delay_s` to `max_delay_s` and starts over after a run of at least
    `stable_s`. A child that has never been ready is given up after `start_attempts` runs; one that
    has been, when it dies more than `restart_limit` times within `restart_window_s` (0: never).
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    stable_s: float = 30.0
    start_attempts: int = 3
    restart_limit: int = 5
    restart_window_s: float = 600.0

    def delay_s(self, failures: int) -> float:
        """Return the wait after so many failures in a row (1 or more)."""
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child: its command, and the file whose existence says that it has been ready.

    `status_file`, if it writes one, has its addresses from the moment it listens. Without
    `environment` it gets this process's. `if_no_memory` is what to do when it gets too little.
    """

    name: str
    argv: tuple[str, ...]
    ready_file: Path
    status_file: Path | None = None
    environment: Mapping[str, str] | None = None
    if_no_memory: str = ""


class Child:
    """Keeps one command running until `stop`.

    It runs in a session of its own, so that Ctrl-C reaches only the parent, which knows the order
    of the stop; whatever its process group leaves behind is killed. The command itself has to end
    when its parent dies (runtime.process.die_with_parent).
    """

    def __init__(
        self,
        spec: ChildSpec,
        *,
        policy: RestartPolicy | None = None,
        write: Callable[[str], object] = sys.stderr.write,
        log_format: str = "text",
        label: str | None = None,
    ) -> None:
        self.spec = spec
        self._policy = policy or RestartPolicy()
        self._new_output = partial(
            ChildOutput, spec.name, label=label, log_format=log_format, write=write
        )
        self._output = self._new_output()
        self._deaths: deque[float] = deque(maxlen=self._policy.restart_limit + 1)
        self._was_ready = False
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The process id while the command runs."""
        process = self._process
        return None if process is None else process.pid

    @property
    def is_ready(self) -> bool:
        """Whether the command runs and has said that it is ready."""
        return self._process is not None and self.spec.ready_file.exists()

    async def run(self) -> None:
        """Start the command again and again; returns after `stop`.

        Raises ChildFailed when the policy says so, and at once when the command exits with 2
        before it has been ready, which says that its configuration is wrong.
        """
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once()
            if self._stopping.is_set():
                return
            ended = time.monotonic()
            failures = 1 if ended - began >= self._policy.stable_s else failures + 1
            self._was_ready = self._was_ready or self.spec.ready_file.exists()
            self._deaths.append(ended)
            self._give_up_if_hopeless(code)
            delay_s = self._policy.delay_s(failures)
            _LOG.warning(
                "%s %s; starting it again in %.1f s",
                self.spec.name, self._end_text(code), delay_s,
            )  # fmt: skip
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()

    async def stop(self, term_s: float) -> None:
        """End the command with SIGTERM, after `term_s` seconds with SIGKILL. Idempotent."""
        self._stopping.set()
        self._ask_to_end()
        try:
            async with asyncio.timeout(term_s):
                await self._over.wait()
        except TimeoutError:
            _LOG.warning("%s did not stop within %g s: killing it", self.spec.name, term_s)
            self.kill()
            await self._over.wait()

    def kill(self) -> None:
        """Kill the command and its process group now."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    def _ask_to_end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
                # One that was halted would not see it.
                self._process.send_signal(signal.SIGCONT)

    async def _run_once(self) -> int:
        for file in (self.spec.ready_file, self.spec.status_file):
            if file is not None:
                file.unlink(missing_ok=True)
        self._over.clear()
        self._output = self._new_output()
        self.starts += 1
        try:
            # Our own pipe: asyncio's PIPE would make `wait` last until everybody has closed it.
            ours, theirs = os.pipe()
            with io.FileIO(ours, "rb") as output:
                try:
                    process = await self._start(theirs)
                finally:
                    os.close(theirs)
                return await self._follow(process, output)
        except OSError as error:
            # No memory, descriptor or process left: another attempt may find some.
            self._output.feed(f"{self.spec.argv[0]}: {error.strerror}\n".encode())
            return FAILED_EXIT
        finally:
            self._process = None
            self._over.set()

    async def _start(self, output: int) -> Process:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.spec.argv,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=self.spec.environment,
        )
        if self._stopping.is_set():
            self._ask_to_end()
        return process

    async def _follow(self, process: Process, output: io.FileIO) -> int:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), output
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(self._pump(reader))
                code = await process.wait()
                _kill_group(process.pid)
                # A process that left the group may hold the pipe open for ever.
                await asyncio.wait([pump], timeout=1.0)
                pump.cancel()
            return code
        finally:
            _kill_group(process.pid)
            transport.close()

    async def _pump(self, output: asyncio.StreamReader) -> None:
        while data := await output.read(_CHUNK_BYTES):
            self._output.feed(data)
        self._output.end()

    def _give_up_if_hopeless(self, code: int) -> None:
        name, policy, deaths = self.spec.name, self._policy, self._deaths
        if not self._was_ready:
            if code == CONFIG_EXIT:
                why = f"{name} refuses its configuration{self._quoted_reason()}"
                raise ChildFailed(why, exit_code=CONFIG_EXIT)
            if self.starts >= policy.start_attempts:
                why = f"{name} did not become ready in {self.starts} attempts; the last one "
                raise ChildFailed(why + self._end_text(code), exit_code=FAILED_EXIT)
            return
        span_s = deaths[-1] - deaths[0]
        if len(deaths) > policy.restart_limit and span_s < policy.restart_window_s:
            raise ChildFailed(
                f"{name} is in a crash loop: it died {len(deaths)} times in {span_s:.0f} s "
                f"(allowed: {policy.restart_limit} in {policy.restart_window_s:.0f} s, "
                f"--restart-limit and --restart-window-s); at last it {self._end_text(code)}",
                exit_code=CRASH_LOOP_EXIT,
            )

    def _end_text(self, code: int) -> str:
        reason = self._quoted_reason()
        if code == -signal.SIGKILL:
            return (
                f"was killed (SIGKILL), most often by the kernel for lack of memory{self._advice}"
            )
        if _NO_MEMORY.search(reason):
            reason += self._advice
        if code < 0:
            return f"was ended by {_signal_name(-code)}{reason}"
        return f"ended with exit code {code}{reason}"

    @property
    def _advice(self) -> str:
        return f": {self.spec.if_no_memory}" if self.spec.if_no_memory else ""

    def _quoted_reason(self) -> str:
        return f": {self._output.reason}" if self._output.reason else ""


async def stop_all(children: Sequence[Child], term_s: float) -> None:
    """Stop children at the same time."""
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(child.stop(term_s))


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
