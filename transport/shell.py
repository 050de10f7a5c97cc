"""What the asyncio shells of both sides share: writing once a turn, named timers, keepalive."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from transport.endpoint import Endpoint

_ALIVE = b"alive?.."
Side = TypeVar("Side", bound=Endpoint)


class Shell(asyncio.Protocol, Generic[Side]):
    """Around one connection. Subclasses set `_transport` while there is one."""

    def __init__(self, connection: Side) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flushes = False
        self._last_read_s = self._loop.time()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def flush(self) -> None:
        """Write what was sent."""
        self._flushes = False
        if self._transport is not None and not self._transport.is_closing():
            data = self._connection.take()
            if data:
                self._transport.write(data)

    def flush_soon(self) -> None:
        """Write what is sent in this turn of the event loop."""
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self.flush)

    def _note_read(self) -> float:
        """The peer lives; returns the time."""
        self._last_read_s = now = self._loop.time()
        self._cancel("dead")
        return now

    def _keep_alive(self, silence_s: float, answer_s: float, dead: Callable[[], None]) -> None:
        """Ask a peer for a sign of life after a silence; `dead` when none comes in `answer_s`."""

        def ask() -> None:
            silent_s = self._loop.time() - self._last_read_s
            if silent_s < silence_s:
                self._after("keepalive", silence_s - silent_s, ask)
                return
            self._after("keepalive", silence_s, ask)
            if "dead" not in self._timers:
                self._connection.ping(_ALIVE)
                self.flush()
                self._after("dead", answer_s, dead)

        self._after("keepalive", silence_s, ask)

    def _after(self, name: str, delay_s: float, then: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.call_later(delay_s, then)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _cancel_all(self) -> None:
        for name in tuple(self._timers):
            self._cancel(name)
