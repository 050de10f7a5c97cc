"""How deep client JSON may nest: what reads it later recurses, and must not run out of stack."""

from typing import Any

from runtime.errors import InvalidRequest

MAX_NESTING = 200
_CONTAINERS = (dict, list, tuple)


def check_nesting(value: Any, param: str) -> None:
    """Raise InvalidRequest when lists and objects stand in each other over `MAX_NESTING` deep."""
    level: list[Any] = [value]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for outer in level:
            inner = outer.values() if isinstance(outer, dict) else outer
            if isinstance(outer, _CONTAINERS):
                below += [it for it in inner if isinstance(it, _CONTAINERS)]
        if not below:
            return
        level = below
    raise InvalidRequest(f"{param}: nested more than {MAX_NESTING} deep", param=param)
