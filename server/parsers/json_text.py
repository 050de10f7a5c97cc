"""Follows one JSON value in text that comes in pieces, without waiting for its end."""

import re
from collections.abc import Callable
from enum import Enum, auto

import msgspec

_BLANK = " \t\n\r"
_IN_STRING = re.compile(r'["\\]')
_OUT_OF_STRING = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[,}\]\s]")


class ValueReader:
    """Finds the end of a value whose first character is the first one fed; `done` at its end.

    `begun` once it has seen a character.

    Only brackets and strings are followed: what stands between them is the writer's affair.
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._scalar = False
        self.begun = False

    def feed(self, text: str, at: int) -> int:
        """Read on from `at`; returns where it stopped: behind the value when it is done."""
        if not self.begun and at < len(text):
            self.begun = True
            self._scalar = text[at] not in '"{['
        if self._scalar:
            end = _SCALAR_END.search(text, at)
            self.done = end is not None
            return end.start() if end else len(text)
        while at < len(text) and not self.done:
            at = self._string(text, at) if self._in_string else self._between(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found.group() == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return found.end()

    def _between(self, text: str, at: int) -> int:
        found = _OUT_OF_STRING.search(text, at)
        if found is None:
            return len(text)
        match found.group():
            case '"':
                self._in_string = True
            case "{" | "[":
                self._depth += 1
            case _:
                self._depth -= 1
                self.done = self._depth == 0
        return found.end()


class _At(Enum):
    OPEN = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT = auto()
    DONE = auto()
    FAILED = auto()


Member = Callable[[str, str, bool], None]


class ObjectReader:
    """Reads an object's members: `member(key, piece, ended)` gets each value's text as it comes.

    `failed` when the text cannot be an object any more.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._at = _At.OPEN
        self._key = ""
        self._value = ValueReader()

    @property
    def done(self) -> bool:
        """Whether its closing brace has been read."""
        return self._at is _At.DONE

    @property
    def failed(self) -> bool:
        """Whether this is no object."""
        return self._at is _At.FAILED

    def feed(self, text: str, at: int = 0) -> int:
        """Read on from `at`; returns where it stopped: behind the object, or at what is wrong."""
        while at < len(text) and not (self.done or self.failed):
            if self._at is _At.VALUE:
                at = self._read_value(text, at)
            elif self._at is _At.KEY and self._key:
                at = self._read_key(text, at)
            elif text[at] in _BLANK:
                at += 1
            else:
                at = self._turn(text, at)
        return at

    def _turn(self, text: str, at: int) -> int:
        sign = text[at]
        match self._at, sign:
            case _At.OPEN, "{":
                self._at = _At.KEY
            case _At.KEY, '"':
                self._key, self._value = '"', ValueReader()
                self._value.feed('"', 0)
            case ((_At.KEY | _At.NEXT), "}"):
                self._at = _At.DONE
            case _At.COLON, ":":
                self._at = _At.VALUE
                self._value = ValueReader()
            case _At.NEXT, ",":
                self._at, self._key = _At.KEY, ""
            case _:
                self._at = _At.FAILED
                return at
        return at + 1

    def _read_key(self, text: str, at: int) -> int:
        end = self._value.feed(text, at)
        self._key += text[at:end]
        if self._value.done:
            self._at = _At.COLON
            try:
                self._key = msgspec.json.decode(self._key, type=str)
            except msgspec.MsgspecError:
                self._at = _At.FAILED
        return end

    def _read_value(self, text: str, at: int) -> int:
        if not self._value.begun:
            while at < len(text) and text[at] in _BLANK:
                at += 1
            if at == len(text):
                return at
            if text[at] in ",}]:":
                self._at = _At.FAILED
                return at
        end = self._value.feed(text, at)
        if end > at or self._value.done:
            self._member(self._key, text[at:end], self._value.done)
        if self._value.done:
            self._at = _At.NEXT
        return end
