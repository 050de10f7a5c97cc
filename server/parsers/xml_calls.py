"""Qwen3-Coder's form: `<function=NAME>` with a `<parameter=KEY>` element for each argument."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.parsers.machine import Machine
from server.parsers.marks import Marks
from server.parsers.schema_values import json_value, parameter_schemas, types_of

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class XmlCalls(Machine):
    """Values of parameters that are texts are passed on as they come, others at their end.

    One line end on each side of a value belongs to the form.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        super().__init__(self._outside)
        self._tools = tools
        self._outer = Marks(_CALL, _FUNCTION)
        self._between = Marks(_FUNCTION, _CALL_END)
        self._inner = Marks(_PARAMETER, _FUNCTION_END)
        self._value_ends = Marks(_PARAMETER_END, f"\n{_PARAMETER_END}", _PARAMETER, _FUNCTION_END)
        self._schemas: Mapping[str, Any] = {}
        self._types: set[str] = set()
        self._value = ""
        self._first = self._fresh = True
        self._in_call = False

    def _outside(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._outer.split(text)
        plain = self.sparse(before, mark=mark) if self.calls.count else before
        if not mark:
            return self.wait(plain, rest)
        self._in_call = mark == _CALL
        self.state = self._preamble if self._in_call else self._name
        return plain, rest

    def _preamble(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._between.split(text)
        plain = self.sparse(before, mark=mark)
        if not mark:
            return self.wait(plain, rest)
        self.state = self._name if mark == _FUNCTION else self._outside
        return plain, rest

    def _name(self, text: str) -> tuple[str, str] | None:
        name, sign, rest = text.partition(">")
        if not sign:
            return None
        self.calls.begin(name.strip())
        self._schemas = parameter_schemas(self._tools, name.strip())
        self._first = True
        self.state = self._parameters
        return "", rest

    def _parameters(self, text: str) -> tuple[str, str]:
        _, mark, rest = self._inner.split(text)
        if not mark:
            return self.wait("", rest)
        if mark == _PARAMETER:
            self.state = self._key
        else:
            self._close()
        return "", rest

    def _close(self) -> None:
        self.calls.add("{}" if self._first else "}")
        self.state = self._preamble if self._in_call else self._outside

    def _key(self, text: str) -> tuple[str, str] | None:
        key, sign, rest = text.partition(">")
        if not sign:
            return None
        key = key.strip()
        self._types = types_of(self._schemas.get(key))
        self._value, self._fresh = "", True
        lead = "{" if self._first else ", "
        self._first = False
        self.calls.add(f"{lead}{_quoted(key)}: " + ('"' if self._is_text else ""))
        self.state = self._text
        return "", rest

    @property
    def _is_text(self) -> bool:
        return self._types == {"string"}

    def _text(self, text: str) -> tuple[str, str] | None:
        if self._fresh and text.startswith("\n"):
            text = text[1:]
            self._fresh = False
            if not text:
                return "", ""
        before, mark, rest = self._value_ends.split(text)
        if before or mark:
            self._fresh = False
        if mark in (_PARAMETER, _FUNCTION_END):
            before = before.removesuffix("\n")
        if self._is_text:
            self.calls.add(_quoted(before)[1:-1])
        else:
            self._value += before
        if not mark:
            return self.wait("", rest)
        self.calls.add('"' if self._is_text else json_value(self._value, self._types))
        self.state = self._key if mark == _PARAMETER else self._parameters
        if mark == _FUNCTION_END:
            self._close()
        return "", rest

    def rest(self, held: str) -> str:
        """A call that breaks off gets its brackets; one without a name is content."""
        if self.state == self._name:
            return (_CALL if self._in_call else "") + _FUNCTION + held
        if self.state == self._text:
            value = self._value + held
            self.calls.add(_quoted(held)[1:] if self._is_text else json_value(value, self._types))
            self.calls.add("}")
        elif self.state in (self._parameters, self._key):
            self.calls.add("{}" if self._first else "}")
        elif self.state == self._outside:
            return self.sparse(held) if self.calls.count else held
        return ""


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
