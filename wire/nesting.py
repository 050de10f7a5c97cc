"""How deep client JSON may nest: what reads it later recurses, and must not run out of stack."""

from typing import Any

from runtime.errors import InvalidRequest

MAX_NESTING = 200


def check_nesting(value: Any, param: str) -> None:
    """Raise InvalidRequest when lists and objects stand in each other over `MAX_NESTING` deep."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise InvalidRequest(f"{param}: nested more than {MAX_NESTING} deep", param=param)


def _containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [inner for inner in value if isinstance(inner, dict | list | tuple)]
