"""Llama's pythonic form: `[f(a=1, b="x"), g()]` and nothing else; or text alone."""

import ast
import re
from typing import Any

import msgspec

from server.parsers.machine import Machine

_HEAD = re.compile(r"\s*([A-Za-z_][\w.]*)\s*\(\s*")
_MAYBE_HEAD = re.compile(r"\s*([A-Za-z_][\w.]*\s*)?$")
_SIGNS = re.compile(r"""["'\\()\[\]{},]""")
_OPENING, _CLOSING = "([{", ")]}"


class PythonicCalls(Machine):
    """Arguments are passed on one by one: Python's words for them are no JSON until they end.

    `marks` may stand around the list.
    """

    def __init__(self, begin: str = "", end: str = "") -> None:
        super().__init__(self._start)
        self._begin, self._end = begin, end
        self._seen = ""
        self._first = True

    def _start(self, text: str) -> tuple[str, str] | None:
        bare = text.lstrip()
        if self._begin and not self._seen and bare.startswith(self._begin):
            self._seen = text[: len(text) - len(bare)] + self._begin
            return "", bare[len(self._begin) :]
        waits = self._begin and not self._seen and self._begin.startswith(bare)
        if not bare or bare == "[" or waits:
            return None
        if bare.startswith("["):
            if _HEAD.match(bare, 1):
                self.state = self._head
                return "", bare[1:]
            if _MAYBE_HEAD.match(bare, 1):
                return None
        self.state = self._plain
        return self._seen, text

    def _plain(self, text: str) -> tuple[str, str]:
        return text, ""

    def _head(self, text: str) -> tuple[str, str] | None:
        found = _HEAD.match(text)
        if found is None:
            if _MAYBE_HEAD.match(text):
                return None
            self.state = self._plain
            return "", text
        self.calls.begin(found.group(1))
        self._first = True
        self.state = self._argument
        return "", text[found.end() :]

    def _argument(self, text: str) -> tuple[str, str] | None:
        end = _end_of_argument(text)
        if end < 0:
            return None
        written = text[:end].strip()
        if written:
            pair = _pair(written)
            if pair is None:
                self._close()
                self.state = self._plain
                return "", text
            self.calls.add(("{" if self._first else ", ") + pair)
            self._first = False
        if text[end] == ")":
            self._close()
            self.state = self._behind
        return "", text[end + 1 :]

    def _close(self) -> None:
        self.calls.add("{}" if self._first else "}")

    def _behind(self, text: str) -> tuple[str, str] | None:
        bare = text.lstrip()
        if not bare:
            return None
        if bare[0] == ",":
            self.state = self._head
        elif bare[0] == "]":
            self.state = self._after
        else:
            self.state = self._plain
            return "", text
        return "", bare[1:]

    def _after(self, text: str) -> tuple[str, str] | None:
        bare = text.lstrip()
        if self._end and bare.startswith(self._end):
            return "", bare[len(self._end) :]
        if not bare or (self._end and self._end.startswith(bare)):
            return None
        self.state = self._plain
        return "", text

    def rest(self, held: str) -> str:
        """A call that breaks off is closed; what never was one is content."""
        if self.state == self._argument:
            pair = _pair(held.strip()) if held.strip() else None
            if pair is not None:
                self.calls.add(("{" if self._first else ", ") + pair)
                self._first = False
            self._close()
        return self._seen + held if self.state == self._start else ""


def _end_of_argument(text: str) -> int:
    """Where the comma or bracket is that ends the argument that `text` begins with; -1: not yet."""
    depth, quote, at = 0, "", 0
    while found := _SIGNS.search(text, at):
        sign, at = found.group(), found.end()
        if sign == "\\":
            at += bool(quote)
        elif quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif depth == 0 and sign in ",)":
            return found.start()
        elif sign in _OPENING:
            depth += 1
        elif sign in _CLOSING:
            depth -= 1
    return -1


def _pair(written: str) -> str | None:
    """`name=value` as a member of a JSON object; None when it is not that."""
    try:
        call = ast.parse(f"f({written})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or call.args or len(call.keywords) != 1:
        return None
    (keyword,) = call.keywords
    if keyword.arg is None:
        return None
    try:
        value = msgspec.json.encode(_value(keyword.value)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
        return None
    return f"{msgspec.json.encode(keyword.arg).decode()}: {value}"


def _value(node: ast.expr) -> Any:
    """A literal's value; also of JSON's words for it. Raises ValueError for anything else."""
    match node:
        case ast.Name(id="null" | "true" | "false" as word):
            return {"null": None, "true": True, "false": False}[word]
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_value(k): _value(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case _:
            return ast.literal_eval(node)
