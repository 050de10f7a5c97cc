"""Long work on an event loop: one piece in each of its turns, whoever has some.

What one turn takes, everything else on the loop waits. So whoever has milliseconds of work splits
it, and takes a turn for each piece; pieces of all others come in between, and none beside it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

_Result = TypeVar("_Result")
Steps: TypeAlias = Generator[None, None, _Result]
"""Work that yields before each of its long pieces, for those who drive it to give them turns."""


class _Turns:
    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False

    def take(self, begin: Callable[[], None]) -> None:
        """Have `begin` called when the turn is its own, now if that is so; `end` ends it."""
        if self._taken:
            self._waiting.append(begin)
        else:
            self._taken = True
            begin()

    def end(self) -> None:
        """The piece is done: the next turn is somebody else's."""
        asyncio.get_running_loop().call_soon(self._next)

    def run(self, piece: Callable[[], object]) -> None:
        """Do a piece in the turn that is its own."""
        try:
            piece()
        finally:
            self.end()

    def _next(self) -> None:
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._taken = False


_of_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]" = WeakKeyDictionary()


def _turns() -> _Turns:
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = _Turns()
    return found


def call_in_turn(callback: Callable[..., object], *arguments: Any) -> None:
    """Call back soon, with no other long work in the same turn of the running loop."""
    turns = _turns()
    loop = asyncio.get_running_loop()

    def begin() -> None:
        loop.call_soon(turns.run, partial(callback, *arguments))

    turns.take(begin)


@asynccontextmanager
async def own_turn() -> AsyncIterator[None]:
    """Wait until no other long work has the turn; what stands in the `with` is the piece."""
    turns = _turns()
    begun = asyncio.get_running_loop().create_future()

    def begin() -> None:
        if begun.cancelled():
            turns.end()
        else:
            begun.set_result(None)

    turns.take(begin)
    try:
        if not begun.done():
            await begun
    except asyncio.CancelledError:
        if not begun.cancelled():
            turns.end()
        raise
    try:
        yield
    finally:
        turns.end()


def at_once(steps: Steps[_Result]) -> _Result:
    """Do all the work now."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            done: _Result = end.value
            return done


async def in_turns(steps: Steps[_Result]) -> _Result:
    """Do all the work, each piece in a turn of its own; what has no long piece is done at once."""
    turn: AbstractAsyncContextManager[None] = nullcontext()
    while True:
        async with turn:
            try:
                next(steps)
            except StopIteration as end:
                done: _Result = end.value
                return done
        turn = own_turn()
