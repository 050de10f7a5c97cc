"""gpt-oss' form (harmony): messages with a channel, told apart by special tokens.

`<|channel|>CHANNEL to=RECIPIENT ...<|message|>TEXT<|end|>`: "analysis" is what it thinks, a message
to functions.NAME is a call, and everything else is content. Source: openai/harmony, docs/format.md.
"""

import re
from collections.abc import Sequence

from server.parsers.calls import Calls
from server.parsers.marks import Marks
from server.parsers.parser import Parsed

_HEAD, _BODY, _PLAIN = "head", "body", "plain"
_MESSAGE = "<|message|>"
_STARTS = ("<|channel|>", "<|start|>", "to=", _MESSAGE)
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """Parses one choice (an AnswerParser). Text without any mark is content."""

    def __init__(self, *, calls: bool, reasoning: bool) -> None:
        self._finds_calls = calls
        self._finds_reasoning = reasoning
        self._calls = Calls()
        self._heads, self._bodies = Marks(_MESSAGE), Marks(*_ENDS)
        self._state = _HEAD
        self._kind = ""
        self._held = ""
        self._begun = False

    @property
    def reasoning(self) -> bool:
        """Whether the next token belongs to what the model thinks."""
        return self._state == _BODY and self._kind == "reasoning"

    def feed(self, text: str, token_ids: Sequence[int]) -> Parsed:
        """Take the next piece."""
        found = Parsed()
        text, self._held = self._held + text, ""
        while text:
            if self._state == _PLAIN:
                found.content += text
                break
            text = self._head(text) if self._state == _HEAD else self._body(text, found)
        found.tool_calls = self._calls.take()
        return found

    def finish(self) -> Parsed:
        """Return what was held back."""
        found = Parsed()
        held, self._held = self._held, ""
        if self._state == _BODY:
            self._say(held, found)
        elif not self._begun:
            found.content = held
        found.tool_calls = self._calls.take()
        return found

    def _head(self, text: str) -> str:
        if not self._begun and not self._may_begin(text):
            self._state = _PLAIN
            return text
        before, mark, rest = self._heads.split(text)
        if not mark:
            self._held = text
            return ""
        self._begun = True
        self._state = _BODY
        channel = _CHANNEL.search(before)
        recipient = _RECIPIENT.search(before)
        if recipient is not None and self._finds_calls:
            self._kind = "call"
            self._calls.begin(recipient.group(1))
        elif channel is not None and channel.group(1) == "analysis" and self._finds_reasoning:
            self._kind = "reasoning"
        else:
            self._kind = "content"
        return rest

    def _may_begin(self, text: str) -> bool:
        bare = text.lstrip()
        return any(bare.startswith(it) or it.startswith(bare) for it in _STARTS)

    def _body(self, text: str, found: Parsed) -> str:
        before, mark, rest = self._bodies.split(text)
        self._say(before, found)
        if not mark:
            self._held = rest
            return ""
        self._state = _HEAD
        # What starts the next message is a part of its head.
        return mark + rest if mark in ("<|start|>", "<|channel|>") else rest

    def _say(self, text: str, found: Parsed) -> None:
        if self._kind == "call":
            self._calls.add(text)
        elif self._kind == "reasoning":
            found.reasoning += text
        else:
            found.content += text
