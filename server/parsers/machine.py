"""What finds calls in an answer's content: states, each a method that eats text."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from server.parsers.calls import Calls
from wire.generate import ToolCallDelta

Found: TypeAlias = tuple[str, list[ToolCallDelta]]
State: TypeAlias = Callable[[str], tuple[str, str] | None]
"""Text to (plain content, the text that is left); None to wait for more of it."""


class ToolMachine(Protocol):
    """Takes an answer's content in pieces; gives plain content and what is new of calls."""

    def feed(self, text: str) -> Found:
        """Take the next piece."""
        ...

    def finish(self) -> Found:
        """Give what was held back: the answer is complete."""
        ...


class Machine:
    """Runs states. One that returns None, or puts text into `held`, gets it again with more."""

    def __init__(self, begin: State, calls: Calls | None = None) -> None:
        self.calls = calls or Calls()
        self.state = begin
        self.held = ""
        self._blanks = ""

    def feed(self, text: str) -> Found:
        """Take the next piece."""
        content = ""
        text, self.held = self.held + text, ""
        while text:
            moved = self.state(text)
            if moved is None:
                self.held = text
                break
            plain, text = moved
            content += plain
        return content, self.calls.take()

    def finish(self) -> Found:
        """Give what was held back: the answer is complete."""
        content = self.rest(self.held)
        self.held = ""
        return content, self.calls.take()

    def rest(self, held: str) -> str:
        """What of the answer's unfinished end is plain content."""
        raise NotImplementedError

    def sparse(self, text: str, *, mark: str = "") -> str:
        """The content in text around calls: blanks before a mark, or at the end, are none."""
        text, self._blanks = self._blanks + text, ""
        end = len(text.rstrip())
        if not mark:
            self._blanks = text[end:]
        return text[:end]

    def wait(self, plain: str, held: str) -> tuple[str, str]:
        """Return `plain` as content and wait for more behind `held`."""
        self.held = held
        return plain, ""
