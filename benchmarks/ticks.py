"""The pace of an engine that is not there."""

import asyncio


class Ticks:
    """Wakes every waiting stream at once, as an engine's step does."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next = asyncio.Event()

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self._interval_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            passed, self._next = self._next, asyncio.Event()
            passed.set()

    async def wait(self) -> None:
        """Return at the next tick."""
        await self._next.wait()
