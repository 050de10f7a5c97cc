"""Runs child processes: their output with a prefix, restarts with backoff, an ordered stop."""

import asyncio
import io
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import Code, ServingError
from runtime.logs import child_line

_LOG = logging.getLogger(__name__)
# What a process of ours exits with when a flag, variable, file or model reference is wrong.
CONFIG_EXIT = 2
_CHUNK_BYTES = 64 * 1024


class ChildFailed(ServingError):
    """A child cannot be kept running; `exit_code` is what its last run ended with."""

    code = Code.FAILED_PRECONDITION
    reason = "child_failed"

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a child is started again. Times in seconds.

    The wait doubles from `first_delay_s` to `max_delay_s` and starts over after a run of at least
    `stable_s`. A child that has never been ready is given up after `start_attempts` runs.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    stable_s: float = 30.0
    start_attempts: int = 3

    def delay_s(self, failures: int) -> float:
        """Return the wait after so many failures in a row (1 or more)."""
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child: its command, and the file whose existence says that it has been ready.

    Without `environment` it gets this process's.
    """

    name: str
    argv: tuple[str, ...]
    ready_file: Path
    environment: Mapping[str, str] | None = None


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
    ) -> None:
        self.spec = spec
        self._policy = policy or RestartPolicy()
        self._write = write
        self._log_format = log_format
        self._added: tuple[str, ...] = ()
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self.starts = 0

    async def run(self) -> None:
        """Start the command again and again; returns after `stop`.

        Raises ChildFailed at once when the command exits with 2, which says that its configuration
        is wrong, and when it fails `start_attempts` times without ever having been ready.
        """
        failures, was_ready = 0, False
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once()
            if self._stopping.is_set():
                return
            was_ready = was_ready or self.spec.ready_file.exists()
            failures = 1 if time.monotonic() - began >= self._policy.stable_s else failures + 1
            self._give_up_if_hopeless(code, failures, was_ready)
            delay_s = self._policy.delay_s(failures)
            _LOG.warning(
                "%s ended with %s; starting it again in %.1f s",
                self.spec.name, _exit_text(code), delay_s,
            )  # fmt: skip
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()

    async def stop(self, term_s: float) -> None:
        """End the command with SIGTERM, after `term_s` seconds with SIGKILL. Idempotent."""
        self._stopping.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(term_s):
                await self._over.wait()
        except TimeoutError:
            _LOG.warning("%s did not stop within %g s: killing it", self.spec.name, term_s)
            self.kill()
            await self._over.wait()

    def add_arguments(self, arguments: Sequence[str]) -> None:
        """Put `arguments` behind the command's own from its next start on."""
        self._added = tuple(arguments)

    def kill(self) -> None:
        """Kill the command and its process group now."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _run_once(self) -> int:
        self.spec.ready_file.unlink(missing_ok=True)
        self._over.clear()
        # A pipe of our own: asyncio's PIPE would make `wait` last until everybody has closed it.
        ours, theirs = os.pipe()
        try:
            with io.FileIO(ours, "rb") as output:
                try:
                    process = await self._start(theirs)
                finally:
                    os.close(theirs)
                return await self._follow(process, output)
        finally:
            self._process = None
            self._over.set()

    async def _start(self, output: int) -> Process:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.spec.argv,
            *self._added,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=self.spec.environment,
        )
        self.starts += 1
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
        """Copy output line by line with the child's name in front."""
        rest = b""
        while data := await output.read(_CHUNK_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _CHUNK_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._write_line(line)
        if rest:
            self._write_line(rest)

    def _write_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self._write(child_line(self.spec.name, text, self._log_format) + "\n")

    def _give_up_if_hopeless(self, code: int, failures: int, was_ready: bool) -> None:
        name = self.spec.name
        if code == CONFIG_EXIT and not was_ready:
            raise ChildFailed(f"{name} refuses its configuration (see above)", exit_code=code)
        if not was_ready and failures >= self._policy.start_attempts:
            raise ChildFailed(
                f"{name} did not become ready in {failures} attempts; "
                f"the last one ended with {_exit_text(code)}",
                exit_code=code,
            )


async def stop_all(children: Sequence[Child], term_s: float) -> None:
    """Stop children at the same time."""
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(child.stop(term_s))


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
