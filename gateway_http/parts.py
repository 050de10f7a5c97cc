"""The parts that a message's content may be made of."""

from collections.abc import Collection, Sequence
from typing import Any


def texts_in(parts: Sequence[Any], kinds: Collection[str]) -> list[str | None]:
    """The text of each part of one of these kinds; None of any other, and of one without."""
    # One call for all: there may be thousands.
    return [
        part["text"]
        if type(part) is dict and part.get("type") in kinds and type(part.get("text")) is str
        else None
        for part in parts
    ]
