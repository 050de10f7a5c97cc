"""How deep client JSON may nest: what reads it later recurses, and must not run out of stack."""

from typing import Any

from runtime.errors import InvalidRequest

MAX_NESTING = 200
_CONTAINERS = frozenset({dict, list, tuple})


def check_nesting(value: Any, param: str) -> None:
    """Raise InvalidRequest when lists and objects stand in each other over `MAX_NESTING` deep."""
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for outer in level:
            inner = outer.values() if isinstance(outer, dict) else outer
            # Most have none, and a long conversation has thousands.
            if not _CONTAINERS.isdisjoint(map(type, inner)):
                below += [it for it in inner if type(it) in _CONTAINERS]
        if not below:
            return
        level = below
    raise InvalidRequest(f"{param}: nested more than {MAX_NESTING} deep", param=param)
