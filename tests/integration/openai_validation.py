"""Answers and events against the types of openai-python, strictly."""

import json
from typing import Any

import pydantic


def valid(kind: Any, value: Any) -> Any:
    """The value as the client's type; raises for a field that is missing or of another type.

    The client's own parsing takes nearly anything. Numbers may lack a fraction, as in JSON.
    """
    adapter = pydantic.TypeAdapter(kind)
    return adapter.validate_json(json.dumps(value), strict=False)


def events_of(data: bytes) -> list[Any]:
    """The JSON of each server-sent event, [DONE] and comments left out."""
    found = []
    for block in data.decode().split("\n\n"):
        lines = [line.removeprefix("data: ") for line in block.split("\n") if line[:6] == "data: "]
        if lines and lines != ["[DONE]"]:
            found.append(json.loads("\n".join(lines)))
    return found
