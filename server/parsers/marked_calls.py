"""Calls that marks tell apart: DeepSeek's and Mistral's forms."""

from dataclasses import dataclass

from server.parsers.calls import Calls, short_id
from server.parsers.json_call import JsonCall
from server.parsers.json_text import ValueReader
from server.parsers.machine import Machine
from server.parsers.marks import Marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`section`, for each call `begin KIND kind NAME name_end ARGUMENTS end`, then `section_end`.

    Without `kind` the name comes first.
    """

    section: str
    begin: str
    kind: str
    name_end: str
    end: str
    section_end: str


DEEPSEEK_V3 = Layout(
    section="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁call▁begin｜>",
    kind="<｜tool▁sep｜>",
    name_end="\n```json\n",
    end="\n```<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V31 = Layout(
    section="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁call▁begin｜>",
    kind="",
    name_end="<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)


class MarkedCalls(Machine):
    """Calls in a section of their own, by a layout."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(self._outside)
        self._layout = layout
        self._sections = Marks(layout.section)
        self._inner = Marks(layout.begin, layout.section_end)
        self._name_ends = Marks(layout.name_end)
        self._ends = Marks(layout.end)

    def _outside(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._sections.split(text)
        plain = self.sparse(before, mark=mark) if self.calls.count else before
        if not mark:
            return self.wait(plain, rest)
        self.state = self._section
        return plain, rest

    def _section(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._inner.split(text)
        plain = self.sparse(before, mark=mark)
        if not mark:
            return self.wait(plain, rest)
        self.state = self._name if mark == self._layout.begin else self._outside
        return plain, rest

    def _name(self, text: str) -> tuple[str, str] | None:
        before, mark, rest = self._name_ends.split(text)
        if not mark:
            return None
        kind, sign, name = before.rpartition(self._layout.kind) if self._layout.kind else ("",) * 3
        self.calls.begin((name if sign else kind or before).strip())
        self.state = self._arguments
        return "", rest

    def _arguments(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._ends.split(text)
        self.calls.add(before)
        if not mark:
            return self.wait("", rest)
        self.state = self._section
        return "", rest

    def rest(self, held: str) -> str:
        """A call without its end mark counts; one without a name is content."""
        if self.state == self._arguments:
            self.calls.add(held)
            return ""
        if self.state == self._name:
            return self._layout.begin + held
        return self.sparse(held) if self.calls.count else held


class MistralCalls(Machine):
    """Behind `[TOOL_CALLS]`: a list of objects, or `NAME{...}`, or `NAME[ARGS]{...}`."""

    MARK = "[TOOL_CALLS]"
    ARGUMENTS = "[ARGS]"

    def __init__(self) -> None:
        super().__init__(self._outside, Calls(short_id))
        self._marks = Marks(self.MARK)
        self._value = ValueReader()
        self._call: JsonCall | None = None

    def _outside(self, text: str) -> tuple[str, str]:
        before, mark, rest = self._marks.split(text)
        plain = self.sparse(before, mark=mark) if self.calls.count else before
        if not mark:
            return self.wait(plain, rest)
        self.state = self._head
        return plain, rest

    def _head(self, text: str) -> tuple[str, str] | None:
        bare = text.lstrip()
        if bare.startswith("[") and not self.ARGUMENTS.startswith(bare[: len(self.ARGUMENTS)]):
            self.state = self._list
            return "", bare[1:]
        name, brace, rest = bare.partition("{")
        if not brace:
            return None
        name = name.strip().removesuffix(self.ARGUMENTS).strip()
        if name:
            self.calls.begin(name)
            self._value = ValueReader()
            self.state = self._arguments
        else:
            self.state = self._list
        return "", brace + rest

    def _arguments(self, text: str) -> tuple[str, str]:
        end = self._value.feed(text, 0)
        self.calls.add(text[:end])
        if self._value.done:
            self.state = self._outside
        return "", text[end:]

    def _list(self, text: str) -> tuple[str, str]:
        if self._call is None:
            text = text.lstrip(" \t\r\n,")
            if text and not text.startswith("{"):
                self.state = self._outside
                return "", text.removeprefix("]")
            self._call = JsonCall(self.calls) if text else None
            return "", text
        text = self._call.feed(text)
        call = self._call
        if not call.sound:
            self.state, self._call = self._outside, None
            return ("" if call.named else self.MARK + "[" + call.raw), text
        if call.done:
            self._call = None
        return "", text

    def rest(self, held: str) -> str:
        """What names no function is content."""
        if self.state == self._head:
            return self.MARK + held
        if self.state == self._list:
            unnamed = self._call is not None and not self._call.named
            return self.MARK + "[" + self._call.raw if unnamed and self._call else ""
        return self.sparse(held) if self.calls.count else held
