"""A request's tools and its tool_choice, checked. Forms: OpenAI's chat completions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from runtime.errors import InvalidRequest

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
Mode = Literal["none", "auto", "required"]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """What the model may call; `parameters` is a JSON schema of an object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["function"]
    function: Function


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class _Chosen(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["function"]
    function: _Named


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What of its tools a request lets the model call, and whether it must.

    `named` is whether it must call exactly this one function.
    """

    functions: tuple[Function, ...] = ()
    mode: Mode = "none"
    named: bool = False

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.mode == "required"


def read_tools(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> ToolUse:
    """Check both; without a choice the model decides. Raises InvalidRequest naming the field."""
    functions = tuple(_function(place, tool) for place, tool in enumerate(tools or ()))
    seen: set[str] = set()
    for place, function in enumerate(functions):
        if function.name in seen:
            at = f"tools[{place}].function.name"
            raise InvalidRequest(f"{at}: {function.name!r} is given twice", param=at)
        seen.add(function.name)
    if not functions:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice: needs tools to choose from", param="tool_choice")
        return ToolUse()
    if choice is None:
        return ToolUse(functions=functions, mode="auto")
    if choice in ("none", "auto", "required"):
        return ToolUse(functions=functions, mode=choice)
    return _named(functions, choice)


def _function(place: int, tool: Mapping[str, Any]) -> Function:
    at = f"tools[{place}]"
    try:
        function = msgspec.convert(tool, _Tool).function
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        field = f"{at}{path.rstrip('`')}"
        raise InvalidRequest(f"{field}: {what[0].lower()}{what[1:]}", param=field) from None
    if not _NAME.fullmatch(function.name):
        at += ".function.name"
        raise InvalidRequest(f"{at}: expected letters, digits, '_', '-' or '.'", param=at)
    return function


def _named(functions: tuple[Function, ...], choice: Any) -> ToolUse:
    try:
        name = msgspec.convert(choice, _Chosen).function.name
    except msgspec.ValidationError:
        raise InvalidRequest(
            'tool_choice: expected "none", "auto", "required" or '
            '{"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        ) from None
    chosen = tuple(it for it in functions if it.name == name)
    if not chosen:
        raise InvalidRequest(f"tool_choice: no tool is called {name!r}", param="tool_choice")
    return ToolUse(functions=chosen, mode="required", named=True)
