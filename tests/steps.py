"""Work that takes turns on a loop, done without one."""

from typing import TypeVar

from runtime.turns import Steps

_Result = TypeVar("_Result")


def at_once(steps: Steps[_Result]) -> _Result:
    """Do all of it and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
