"""What a model thinks before it answers, told apart by marks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.parsers.marks import Marks

_TAIL = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How a family marks its thoughts: any of `begins`, and any of `ends`.

    It `always` thinks first, with or without a begin mark, unless the prompt has ended that.
    What is in `breaks` ends its thoughts, too, and belongs to the answer. `switches` are
    variables of the chat template, any of which switches it on; `by_default` is what holds
    without. With `tokens` each mark is one token of its tokenizers.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    always: bool = True
    breaks: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    by_default: bool = True
    tokens: bool = False

    def is_on(self, variables: Mapping[str, Any]) -> bool:
        """Whether a request with these template variables is answered with thoughts."""
        given = [bool(variables[name]) for name in self.switches if name in variables]
        return any(given) if given else self.by_default

    def begins_inside(self, prompt: str) -> bool | None:
        """Whether a prompt ends within thoughts, or (false) behind them; None when neither."""
        end = prompt[-_TAIL:].rstrip()
        if end.endswith(self.ends):
            return False
        return True if end.endswith(self.begins) else None


class ThinkingMachine:
    """Splits an answer into thoughts and the rest; `thinks` is whether the thoughts go on."""

    def __init__(self, family: Thinking, *, starts_inside: bool) -> None:
        self.thinks = starts_inside or family.always
        self._looks = not self.thinks
        self._family = family
        self._begins = Marks(*family.begins)
        self._inside = Marks(*family.begins, *family.ends, *family.breaks)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Return (thoughts, answer) of the next piece."""
        text, self._held = self._held + text, ""
        if self._looks:
            return self._look(text)
        thoughts = ""
        while self.thinks and text:
            before, mark, text = self._inside.split(text)
            thoughts += before
            if not mark:
                self._held, text = text, ""
            elif mark not in self._family.begins:
                self.thinks = False
                text = mark + text if mark in self._family.breaks else text
        return thoughts, text

    def _look(self, text: str) -> tuple[str, str]:
        """Thoughts may begin at the beginning only."""
        bare = text.lstrip()
        for mark in self._family.begins:
            if bare.startswith(mark):
                self._looks, self.thinks = False, True
                return self.feed(bare[len(mark) :])
        if not bare or any(mark.startswith(bare) for mark in self._family.begins):
            self._held = text
            return "", ""
        self._looks = False
        return "", text

    def finish(self) -> tuple[str, str]:
        """Return what was held back: a mark's beginning that came to nothing."""
        held, self._held = self._held, ""
        return (held, "") if self.thinks else ("", held)
