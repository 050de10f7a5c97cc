"""The life of a process: signals in two stages, and an ordered stop that says what it does."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process shall stop, and why. Set by a signal or by the process itself."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.why = ""

    @property
    def requested(self) -> bool:
        """Whether the process shall stop."""
        return self._event.is_set()

    def request(self, why: str) -> None:
        """Ask for the ordered stop; only the first reason counts."""
        if not self._event.is_set():
            self.why = why
            self._event.set()

    async def wait(self) -> str:
        """Wait until the stop is asked for; returns why."""
        await self._event.wait()
        return self.why


@contextmanager
def stop_on_signals(
    stop: StopRequest, *, hard_limit_s: float, at_forced_exit: Callable[[], None] | None = None
) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `stop`; a second one ends the process with 128+n at once.

    So does `hard_limit_s` after the first, should the ordered stop hang. `at_forced_exit` runs
    before a forced exit and must not block. Needs the main thread and a running loop.
    """
    loop = asyncio.get_running_loop()

    def force(number: int) -> None:
        try:
            if at_forced_exit is not None:
                at_forced_exit()
        finally:
            os._exit(128 + number)

    watchdog: list[threading.Timer] = []

    def on_signal(number: int) -> None:
        name = signal.Signals(number).name
        if stop.requested:
            _LOG.warning("%s again: exit without waiting", name)
            force(number)
        _LOG.info("%s: stopping; a second one stops without waiting", name)
        stop.request(name)
        timer = threading.Timer(hard_limit_s, force, args=(number,))
        timer.daemon = True
        timer.start()
        watchdog.append(timer)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for timer in watchdog:
            timer.cancel()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of an ordered stop; `limit_s` bounds it."""

    name: str
    action: Callable[[], Awaitable[object]]
    limit_s: float = 30.0


def waiting_stage(whom: str, wait_s: float) -> Stage:
    """A step that gives others time to notice: `whom` names them."""
    return Stage(name=whom, action=lambda: asyncio.sleep(wait_s), limit_s=wait_s + 1)


def log_waiting(requests: int, limit_s: float) -> None:
    """Say that a stop waits for running requests, and how not to wait."""
    if requests:
        _LOG.info(
            "waiting up to %g s for %d running requests; a second signal stops at once",
            limit_s,
            requests,
        )


async def run_stages(stages: Sequence[Stage]) -> None:
    """Run the steps in order, one log line each; one that fails or hangs stops no later one."""
    for stage in stages:
        began = time.monotonic()
        outcome = "done"
        try:
            async with asyncio.timeout(stage.limit_s):
                await stage.action()
        except TimeoutError:
            outcome = f"given up after {stage.limit_s:g} s"
        except Exception:  # noqa: BLE001 - later stages must run all the same
            outcome = "failed"
            _LOG.exception("stop: %s failed", stage.name)
        _LOG.info("stop: %s: %s in %.3f s", stage.name, outcome, time.monotonic() - began)
