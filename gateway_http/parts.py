"""The parts that a message's content may be made of."""

from collections.abc import Collection
from typing import Any


def text_in(part: Any, kinds: Collection[str]) -> str | None:
    """The text of a part of one of these kinds; None of any other, or of one without."""
    if isinstance(part, dict) and part.get("type") in kinds:
        text = part.get("text")
        if isinstance(text, str):
            return text
    return None
