"""Long work: whoever has some, one piece in each turn of the loop, and nobody is forgotten."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from runtime.turns import Steps, call_in_turn, in_turns, own_turn


class Pieces:
    """Who did a piece in which turn of the loop."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.in_turn: Counter[int] = Counter()
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self._turn += 1
        self._handle = self._loop.call_soon(self._count)

    def add(self, who: str) -> None:
        self.done.append(who)
        self.in_turn[self._turn] += 1

    def end(self) -> None:
        self._handle.cancel()


def with_pieces(run: Callable[[Pieces], Coroutine[Any, Any, None]]) -> Pieces:
    async def main() -> Pieces:
        pieces = Pieces()
        async with asyncio.timeout(10):
            await run(pieces)
        pieces.end()
        return pieces

    return asyncio.run(main())


async def work(pieces: Pieces, who: str, times: int) -> None:
    for _ in range(times):
        async with own_turn():
            pieces.add(who)


async def everything_called() -> None:
    """Wait for all that asked for a turn before."""
    async with own_turn():
        pass


def test_pieces_of_all_alternate_one_in_a_turn() -> None:
    async def run(pieces: Pieces) -> None:
        for _ in range(3):
            call_in_turn(pieces.add, "c")
        await asyncio.gather(work(pieces, "a", 3), work(pieces, "b", 3))
        await everything_called()

    pieces = with_pieces(run)
    assert Counter(pieces.done) == {"a": 3, "b": 3, "c": 3}
    assert pieces.done[-4:] == ["a", "b", "a", "b"]
    assert set(pieces.in_turn.values()) == {1}


def test_a_piece_does_not_wait_when_no_other_has_the_turn() -> None:
    async def run(pieces: Pieces) -> None:
        async with own_turn():
            pieces.add("a")

    assert with_pieces(run).in_turn == {0: 1}


def test_one_that_is_cancelled_lets_the_others_go_on() -> None:
    async def run(pieces: Pieces) -> None:
        tasks = [asyncio.create_task(work(pieces, who, 2)) for who in "abcd"]
        await asyncio.sleep(0)
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await everything_called()

    pieces = with_pieces(run)
    assert Counter(pieces.done) == {"a": 2, "d": 2}


@pytest.mark.parametrize("turns", range(6))
def test_one_that_is_cancelled_as_its_turn_comes_lets_the_others_go_on(turns: int) -> None:
    async def run(pieces: Pieces) -> None:
        first = asyncio.create_task(work(pieces, "a", 1))
        second = asyncio.create_task(work(pieces, "b", 1))
        third = asyncio.create_task(work(pieces, "c", 1))
        await first
        for _ in range(turns):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, third, return_exceptions=True)

    assert with_pieces(run).done[-1] == "c"


def test_a_piece_that_fails_lets_the_others_go_on() -> None:
    async def run(pieces: Pieces) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        call_in_turn(lambda: 1 / 0)
        with pytest.raises(KeyError):
            async with own_turn():
                raise KeyError
        await work(pieces, "a", 1)

    assert with_pieces(run).done == ["a"]


def steps(pieces: Pieces, who: str, times: int) -> Steps[str]:
    for _ in range(times):
        yield
        pieces.add(who)
    return f"{who} is done"


def test_steps_take_turns_with_all_others() -> None:
    results = []

    async def run(pieces: Pieces) -> None:
        both = (in_turns(steps(pieces, who, 3)) for who in "ab")
        results.extend(await asyncio.gather(*both, work(pieces, "c", 3)))

    pieces = with_pieces(run)
    assert Counter(pieces.done) == {"a": 3, "b": 3, "c": 3}
    assert set(pieces.in_turn.values()) == {1}
    assert results == ["a is done", "b is done", None]


def test_without_a_long_piece_all_is_done_at_once() -> None:
    async def run(pieces: Pieces) -> None:
        async with own_turn():
            assert await in_turns(steps(pieces, "a", 0)) == "a is done"
            pieces.add("b")

    assert with_pieces(run).in_turn == {0: 1}


def test_a_step_that_fails_ends_it_and_lets_the_others_go_on() -> None:
    def failing() -> Steps[None]:
        yield
        raise KeyError

    async def run(pieces: Pieces) -> None:
        with pytest.raises(KeyError):
            await in_turns(failing())
        await work(pieces, "a", 1)

    assert with_pieces(run).done == ["a"]


@pytest.mark.parametrize("turns", range(6))
def test_steps_that_are_cancelled_are_closed_and_let_the_others_go_on(turns: int) -> None:
    closed = []

    def long() -> Steps[None]:
        try:
            while True:
                yield
        finally:
            closed.append(True)

    async def run(pieces: Pieces) -> None:
        task = asyncio.create_task(in_turns(long()))
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await work(pieces, "a", 1)

    assert with_pieces(run).done == ["a"]
    assert closed == [True]
