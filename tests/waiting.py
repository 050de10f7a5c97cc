"""Bounded waits for a state that nothing announces, such as another process's."""

import asyncio
from collections.abc import Callable


async def eventually(
    condition: Callable[[], bool], *, limit_s: float = 10.0, look_every_s: float = 0.0
) -> None:
    """Let the event loop run until `condition()` holds; raises TimeoutError after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(look_every_s)


def wait_until(condition: Callable[[], bool], *, limit_s: float = 60.0) -> None:
    """`eventually` for tests without an event loop; looks 20 times a second."""
    asyncio.run(eventually(condition, limit_s=limit_s, look_every_s=0.05))
