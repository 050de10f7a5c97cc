"""The generations of one HTTP request as one stream of (prompt number, delta)."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeAlias, cast

from runtime.turns import own_turn
from wire.generate import Backend, GenerateDelta, GenerateRequest, OnText

Generations: TypeAlias = AsyncGenerator[tuple[int, GenerateDelta], None]


def closable(
    backend: Backend, request: GenerateRequest, on_text: OnText | None = None
) -> AsyncGenerator[GenerateDelta, None]:
    """The backend's iterator, which by its contract can be closed."""
    return cast("AsyncGenerator[GenerateDelta, None]", backend.generate(request, on_text))


def generations(
    backend: Backend,
    requests: Sequence[GenerateRequest],
    group: asyncio.TaskGroup,
    on_text: OnText | None = None,
) -> Generations:
    """Run all requests at once; the first error ends them all. Closing it cancels them.

    With more than one request each gets a task in `group`, which must outlive the iterator, and
    nobody is told text alone.
    """
    if len(requests) == 1:
        return _single(backend, requests[0], on_text)
    return _merged(backend, requests, group)


async def _single(
    backend: Backend, request: GenerateRequest, on_text: OnText | None
) -> Generations:
    async with aclosing(closable(backend, request, on_text)) as deltas:
        async for delta in deltas:
            yield 0, delta


_Item: TypeAlias = tuple[int, "GenerateDelta | Exception | None"]


async def _merged(
    backend: Backend, requests: Sequence[GenerateRequest], group: asyncio.TaskGroup
) -> Generations:
    # A full queue holds the producers back, and a backend merges what is not taken.
    queue: asyncio.Queue[_Item] = asyncio.Queue(maxsize=len(requests))
    tasks: list[asyncio.Task[None]] = []
    running = len(requests)
    try:
        for number, request in enumerate(requests):
            # Encoding a prompt may take 2 ms.
            async with own_turn():
                tasks.append(group.create_task(_pump(backend, request, number, queue)))
                await asyncio.sleep(0)
        while running:
            number, item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()


async def _pump(
    backend: Backend, request: GenerateRequest, number: int, queue: asyncio.Queue[_Item]
) -> None:
    try:
        async with aclosing(closable(backend, request)) as deltas:
            async for delta in deltas:
                await queue.put((number, delta))
    except Exception as failure:  # noqa: BLE001 - the reader raises it
        await queue.put((number, failure))
    else:
        await queue.put((number, None))
