"""Counts work in progress and waits for its end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """A counter of running work on one event loop."""

    def __init__(self) -> None:
        self._idle = asyncio.Event()
        self._idle.set()
        self.count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one piece of work for the length of the block."""
        self.add()
        try:
            yield
        finally:
            self.remove()

    def add(self) -> None:
        """Count one piece of work until `remove`."""
        self.count += 1
        self._idle.clear()

    def remove(self) -> None:
        """One piece of work is over."""
        self.count -= 1
        if self.count == 0:
            self._idle.set()

    async def wait_zero(self, timeout_s: float | None) -> bool:
        """Wait until nothing is counted; returns False after `timeout_s` (None: no limit)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
