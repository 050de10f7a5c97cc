"""Values written as plain text, to JSON, by what a tool's JSON schema wants of them.

The order in which types are tried is that of vLLM (vllm/tool_parsers/utils.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

_CHOICES = ("anyOf", "oneOf", "allOf")
_UNFIT = object()


def parameter_schemas(tools: Sequence[Mapping[str, Any]] | None, name: str) -> Mapping[str, Any]:
    """The schemas of a function's parameters, by their names; empty when it is not known."""
    for tool in tools or ():
        function = tool.get("function")
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            found = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return found if isinstance(found, Mapping) else {}
    return {}


def types_of(schema: Any) -> set[str]:
    """The types that a schema allows; "string" where it does not say."""
    return _types(schema) or {"string"}


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    given = schema.get("type")
    found = {given} if isinstance(given, str) else {it for it in given or () if isinstance(it, str)}
    for value in schema.get("enum") or ():
        found.add(_NAMES.get(type(value), "string"))
    for key in _CHOICES:
        for choice in schema.get(key) or ():
            found |= types_of(choice)
    return found


_NAMES: dict[type, str] = {
    type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string",
    list: "array", dict: "object",
}  # fmt: skip


def json_value(text: str, types: set[str]) -> str:
    """`text` as the JSON of the first type that it fits; as a string when none does."""
    for name, convert in _CONVERSIONS.items():
        if name in types and (value := convert(text)) is not _UNFIT:
            return msgspec.json.encode(value).decode()
    return msgspec.json.encode(text).decode()


def _null(text: str) -> Any:
    return None if text.lower() == "null" else _UNFIT


def _integer(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return _UNFIT


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return _UNFIT
    if not math.isfinite(value):
        return _UNFIT
    return int(value) if value.is_integer() else value


def _boolean(text: str) -> Any:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower().strip(), _UNFIT)


def _of_type(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return _UNFIT
        return value if isinstance(value, kind) else _UNFIT

    return convert


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "null": _null,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "object": _of_type(dict),
    "array": _of_type(list),
}
