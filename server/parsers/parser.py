"""What a parser of answers is: text in pieces in; reasoning, content and tool calls out."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from runtime.errors import ServingError
from wire.generate import ChoiceDelta, ToolCallDelta


class Parsed(msgspec.Struct, kw_only=True):
    """What a piece of an answer turned out to be; all of it may be empty."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCallDelta] = []


class AnswerParser(Protocol):
    """Parses one choice. Pure: no I/O; not for use by several threads.

    The sum of what it returns does not depend on how the answer was cut into pieces. What cannot
    be a mark any more is returned at once, and nothing of an answer is lost: malformed calls come
    back as content.
    """

    @property
    def reasoning(self) -> bool:
        """Whether the next token belongs to what the model thinks."""
        ...

    def feed(self, text: str, token_ids: Sequence[int]) -> Parsed:
        """Take the next piece: its text, special tokens included, and its ids.

        The text may lag behind the ids (see wire.generate.ChoiceDelta).
        """
        ...

    def finish(self) -> Parsed:
        """Return what was held back: the answer is complete."""
        ...


Deliver: TypeAlias = Callable[[ChoiceDelta], None]
Fail: TypeAlias = Callable[[ServingError], None]


class ChoiceParser(Protocol):
    """Turns one choice's deltas of plain text into parsed ones, at once or later, in order.

    `reasoning_tokens` counts those of the deltas delivered so far.
    """

    reasoning_tokens: int

    def feed(self, fresh: ChoiceDelta, deliver: Deliver, fail: Fail) -> None:
        """Take the next delta, on the event loop; never blocks, never raises.

        For each one fed at most one comes out, the one with `finish_reason` always; or `fail`
        is called, once, and nothing more comes.
        """
        ...

    def close(self) -> None:
        """Deliver nothing more: the request is over. Idempotent."""
        ...
