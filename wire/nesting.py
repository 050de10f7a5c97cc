"""How deep client JSON may nest: what reads it later recurses, and must not run out of stack."""

from typing import Any

from runtime.errors import InvalidRequest
from runtime.turns import Steps, at_once

MAX_NESTING = 200
_PART = 1024  # containers, 0.3 ms, cold 1
_CONTAINERS = frozenset({dict, list, tuple})


def check_nesting(value: Any, param: str) -> None:
    """Raise InvalidRequest when lists and objects stand in each other over `MAX_NESTING` deep."""
    at_once(nesting_steps(value, param))


def nesting_steps(value: Any, param: str) -> Steps[bool]:
    """Do the same by parts; returns whether there are so many that more work takes turns, too."""
    seen = 0
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for number, outer in enumerate(level, seen):
            if number % _PART == _PART - 1:
                yield
            inner = outer.values() if isinstance(outer, dict) else outer
            # Most have none, and a long conversation has thousands.
            if not _CONTAINERS.isdisjoint(map(type, inner)):
                below += [it for it in inner if type(it) in _CONTAINERS]
        seen += len(level)
        if not below:
            return seen >= _PART
        level = below
    raise InvalidRequest(f"{param}: nested more than {MAX_NESTING} deep", param=param)
