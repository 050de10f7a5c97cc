"""A family of processes under one parent: kept running, seen and restarted as one."""

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.family_status import FamilyStatus, read_told
from cli.options import FrontOptions
from runtime.lifecycle import Stage, StopRequest, run_stages, stop_on_signals
from runtime.metrics import set_build_info
from runtime.ready_file import remove_ready_file, write_ready_file
from runtime.supervisor import Child, ChildFailed, ChildSpec, stop_all

_LOG = logging.getLogger(__name__)
# What a child may take beyond its own drain: closing the engine, above all.
_CHILD_CLOSE_S = 45.0
_REPLACEMENT_S = 600.0
_PROGRESS_S = 5.0
_LOOK_S = 0.1
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A place in the family, filled by one process at a time.

    `make` describes the n-th process to fill it, from 0 on, given the URL of the family's status
    port; `surge`: the next one starts before the old one stops.
    """

    name: str
    make: Callable[[int, str], ChildSpec]
    is_front: bool
    surge: bool


def child_command(*arguments: str) -> tuple[str, ...]:
    """Return the command line of a process of ours that dies with this one."""
    # -P: a folder `cli` where the user happens to stand is not ours.
    own = (sys.executable, "-P", "-m", "cli.main", "--parent-pid", str(os.getpid()))
    return own + arguments


class Family:
    """The members' processes, and the order in which they come and go.

    Its status port speaks for all of them. `name`: what it calls itself there; `models`: the order
    to name models in; `folder` is removed if it ends by force; `at_ready` gets the content of the
    ready file once every front door is ready; `progress` is told while they are not.
    """

    def __init__(
        self,
        name: str,
        config: FrontOptions,
        members: Sequence[Member],
        *,
        models: Sequence[str] = (),
        folder: Path,
        at_ready: Callable[[dict[str, Any]], None],
        progress: Callable[[str], None],
    ) -> None:
        self._name = name
        self._config = config
        self._members, self._models = members, models
        self._folder = folder
        self._at_ready, self._progress = at_ready, progress
        self._fronts = [member.name for member in members if member.is_front]
        self._labels = _labels([member.name for member in members])
        self._current: dict[str, Child] = {}
        self._made: Counter[str] = Counter()
        self._running: dict[Child, Member] = {}
        self._on_trial: Child | None = None
        self._failure: ChildFailed | None = None
        self._stop = StopRequest()
        self._hangup = asyncio.Event()
        self._term_s = config.drain_timeout_s + _CHILD_CLOSE_S
        self._status = FamilyStatus(
            name,
            config,
            self._current,
            fronts=self._fronts,
            welcome=lambda: not self._stop.requested,
        )
        self._status_url = ""

    async def run(self) -> None:
        """Run everything until a signal; raises ChildFailed if a child had to be given up."""
        set_build_info(self._name)
        self._status_url = self._status.server.start()
        limit_s = 2 * self._term_s + 10
        try:
            with (
                stop_on_signals(self._stop, hard_limit_s=limit_s, at_forced_exit=self._abandon),
                self._hangups(),
            ):
                await self._run_members()
        finally:
            self._status.server.stop()
        if self._failure is not None:
            raise self._failure

    async def _run_members(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for member in self._members:
                self._current[member.name] = self._begin(tasks, member)
            living = tasks.create_task(self._live(tasks))
            _LOG.info("stopping: %s", await self._stop.wait())
            living.cancel()
            await run_stages(self._stop_stages())

    def _begin(self, tasks: asyncio.TaskGroup, member: Member) -> Child:
        child = Child(
            member.make(self._made[member.name], self._status_url),
            policy=self._config.restart_policy,
            log_format=self._config.log_format,
            label=self._labels[member.name],
        )
        self._made[member.name] += 1
        self._running[child] = member
        tasks.create_task(self._keep(child))
        return child

    async def _keep(self, child: Child) -> None:
        try:
            await child.run()
        except ChildFailed as failure:
            if child is self._on_trial:
                _LOG.error("%s", failure)
                self._on_trial = None
                return
            self._failure = self._failure or failure
            self._stop.request(failure.message)
        finally:
            del self._running[child]

    async def _live(self, tasks: asyncio.TaskGroup) -> None:
        """Say when all are ready; from then on, restart them one by one at each SIGHUP."""
        ready = await self._wait_ready()
        if self._config.ready_file is not None:
            write_ready_file(self._config.ready_file, ready)
        self._at_ready(ready)
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            await self._restart_all(tasks)

    async def _wait_ready(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        began = said = loop.time()
        while True:
            told = [read_told(self._current[name].spec.ready_file) for name in self._fronts]
            if all(told):
                del told[0]["pid"]
                models = sorted(told[0]["models"], key=self._place)
                return told[0] | {"metrics": self._status_url, "models": models}
            if loop.time() - said >= _PROGRESS_S:
                said = loop.time()
                self._progress(f"starting: {', '.join(self._missing())} ({said - began:.0f} s)")
            await asyncio.sleep(_LOOK_S)

    def _missing(self) -> list[str]:
        """Name what is waited for; a front door waits for the workers itself."""
        starting = [child.spec.name for child in self._running if not child.is_ready]
        return [name for name in starting if name not in self._fronts] or starting

    def _place(self, model: str) -> int:
        return self._models.index(model) if model in self._models else len(self._models)

    async def _restart_all(self, tasks: asyncio.TaskGroup) -> None:
        _LOG.info("SIGHUP: restarting %d processes one by one", len(self._members))
        for member in self._members:
            if not await self._replace(tasks, member):
                _LOG.error("restart: ends here, the processes after %s stay", member.name)
                return
        _LOG.info("restart: done")

    async def _replace(self, tasks: asyncio.TaskGroup, member: Member) -> bool:
        """Put a new process in the place of the running one; False if it does not get ready."""
        old = self._current[member.name]
        old_pid = old.pid
        if not member.surge:
            await old.stop(self._term_s)
        new = self._on_trial = self._begin(tasks, member)
        comes_up = await self._comes_up(member, new, old)
        self._on_trial = None
        if not comes_up:
            await new.stop(self._term_s)
            return False
        self._current[member.name] = new
        # Whoever sends requests learns of the new one before the old one goes.
        await asyncio.sleep(self._config.withdraw_wait_s)
        await old.stop(self._term_s)
        _LOG.info("restart: %s: process %s has replaced %s", member.name, new.pid, old_pid)
        return True

    async def _comes_up(self, member: Member, new: Child, old: Child) -> bool:
        can_replace = partial(self._status.can_replace, new, old, is_front=member.is_front)
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPLACEMENT_S):
                while self._on_trial is new:
                    if await asyncio.to_thread(can_replace):
                        return True
                    await asyncio.sleep(_LOOK_S)
                return False
        _LOG.error("%s is not ready after %g s", member.name, _REPLACEMENT_S)
        return False

    def _stop_stages(self) -> list[Stage]:
        # The front doors first: what they still answer needs the workers.
        limit_s = self._term_s + 5
        return [
            Stage(name="readiness", action=self._withdraw),
            Stage(name="front doors", action=lambda: self._stop_those(True), limit_s=limit_s),
            Stage(name="workers", action=lambda: self._stop_those(False), limit_s=limit_s),
        ]

    async def _stop_those(self, fronts: bool) -> None:
        those = [child for child, member in self._running.items() if member.is_front == fronts]
        await stop_all(those, self._term_s)

    async def _withdraw(self) -> None:
        if self._config.ready_file is not None:
            remove_ready_file(self._config.ready_file)

    def _abandon(self) -> None:
        for child in self._running:
            child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _hangups(self) -> Iterator[None]:
        """SIGHUP restarts the members, unless it says that the terminal was closed.

        Who started this process with the signal ignored (nohup) wants neither.
        """
        loop = asyncio.get_running_loop()
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            yield
            return
        had_terminal = _has_terminal()

        def on_hangup() -> None:
            if had_terminal and not _has_terminal():
                self._stop.request("the terminal was closed")
            else:
                self._hangup.set()

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Return each name as its lines begin with it: coloured where stderr is a terminal."""
    from rich.console import Console
    from rich.text import Text

    # Knows about NO_COLOR, dumb terminals and what is no terminal.
    console = Console(stderr=True)
    labels = {}
    for number, name in enumerate(names):
        with console.capture() as captured:
            console.print(
                Text(f"[{name}]", _COLOURS[number % len(_COLOURS)]), soft_wrap=True, end=""
            )
        labels[name] = captured.get()
    return labels
