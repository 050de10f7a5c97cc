"""Calls written as JSON objects that hold a name and arguments."""

import msgspec

from server.parsers.calls import Calls
from server.parsers.json_text import ObjectReader
from server.parsers.machine import Machine
from server.parsers.marks import Marks

_ARGUMENTS = ("arguments", "parameters")
_BLANK = " \t\r\n"


class JsonCall:
    """Reads one `{"name": ..., "arguments": {...}}` into `calls`, its keys in any order.

    `raw` is its text so far. `sound` is false when it cannot be a call: nothing has been told to
    `calls` then, unless it broke off behind its name.
    """

    def __init__(self, calls: Calls) -> None:
        self.raw = ""
        self.named = False
        self._calls = calls
        self._reader = ObjectReader(self._member)
        self._name = ""
        self._early = ""
        self._has_arguments = False

    @property
    def done(self) -> bool:
        """Whether the object is complete."""
        return self._reader.done

    @property
    def sound(self) -> bool:
        """Whether it is a call, or may become one."""
        return not self._reader.failed and (self.named or not self._reader.done)

    def feed(self, text: str) -> str:
        """Take text; returns what is behind the object, or begins with what is wrong in it."""
        end = self._reader.feed(text)
        self.raw += text[:end]
        if self.done and self.named and not self._has_arguments:
            self._calls.add("{}")
        return text[end:]

    def _member(self, key: str, piece: str, ended: bool) -> None:
        if key == "name" and not self.named:
            self._name += piece
            if ended:
                self._begin()
        elif key in _ARGUMENTS:
            self._has_arguments = True
            if self.named:
                self._calls.add(piece)
            else:
                self._early += piece

    def _begin(self) -> None:
        try:
            name = msgspec.json.decode(self._name, type=str)
        except msgspec.MsgspecError:
            return
        self.named = True
        self._calls.begin(name)
        self._calls.add(self._early)


class TaggedJson(Machine):
    """Hermes' and Qwen's form: a JSON object between two marks, text around them.

    Blanks behind a call are content only if more follows than another call.
    """

    def __init__(self, begin: str, end: str) -> None:
        super().__init__(self._outside)
        self._begin = begin
        self._begins, self._ends = Marks(begin), Marks(end)
        self._call = JsonCall(self.calls)

    def _outside(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._begins.split(text)
        plain = self.sparse(before, mark=mark) if self.calls.count else before
        if not mark:
            return self.wait(plain, rest)
        self._call = JsonCall(self.calls)
        self.state = self._object
        return plain, rest

    def _object(self, text: str) -> tuple[str, str]:
        text = self._call.feed(text)
        if not self._call.sound:
            self.state = self._outside
            return ("" if self._call.named else self._begin + self._call.raw), text
        if self._call.done:
            self.state = self._behind
        return "", text

    def _behind(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._ends.split(text)
        plain = self.sparse(before, mark=mark)
        if not mark:
            return self.wait(plain, rest)
        self.state = self._outside
        return plain, rest

    def rest(self, held: str) -> str:
        """A call whose end mark is missing counts; one without a name is content."""
        if self.state == self._object:
            return "" if self._call.named else self._begin + self._call.raw + held
        return self.sparse(held) if self.calls.count else held


class BareJson(Machine):
    """Llama's form: objects alone, `;` between them, perhaps behind a mark; or else text alone."""

    def __init__(self, mark: str) -> None:
        super().__init__(self._between)
        self._mark = mark
        self._marks = Marks(mark)
        self._call = JsonCall(self.calls)
        self._seen = ""

    def _between(self, text: str) -> tuple[str, str] | None:
        bare = text.lstrip(_BLANK + ";" if self.calls.count else _BLANK)
        if bare.startswith("{"):
            self._seen += text[: len(text) - len(bare)]
            self._call = JsonCall(self.calls)
            self.state = self._object
            return "", bare
        if bare.startswith(self._mark):
            self._seen += text[: len(text) - len(bare)] + self._mark
            return "", bare[len(self._mark) :]
        if not bare or self._mark.startswith(bare):
            return None
        self.state = self._text
        return self._unsaid(), text

    def _object(self, text: str) -> tuple[str, str]:
        text = self._call.feed(text)
        if not self._call.sound:
            self.state = self._text
            return ("" if self._call.named else self._unsaid() + self._call.raw), text
        if self._call.done:
            self._seen = ""
            self.state = self._between
        return "", text

    def _text(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._marks.split(text)
        if not mark:
            return self.wait(before, rest)
        self._seen = mark
        self.state = self._between
        return before, rest

    def _unsaid(self) -> str:
        """The mark that no call follows, once."""
        seen, self._seen = self._seen, ""
        return seen

    def rest(self, held: str) -> str:
        """An object without a name is content, and so are marks that nothing follows."""
        if self.state == self._object:
            return "" if self._call.named else self._unsaid() + self._call.raw + held
        if self.state == self._between and self.calls.count and not held.strip(_BLANK + ";"):
            return self._unsaid()
        return self._unsaid() + held
