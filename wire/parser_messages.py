"""What a front door and its process for vLLM's parsers say to each other, over pipes.

Each message is its length, 4 bytes little-endian, and msgpack.
"""

from typing import Any

import msgspec

from wire.generate import ToolCallDelta

LENGTH_BYTES = 4


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Begin to parse the choice `number`. `model` is the model's folder, "" names no parser."""

    number: int
    model: str
    tool_call_parser: str
    reasoning_parser: str
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    prompt_ids: list[int]


class Feed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The next piece of a choice."""

    number: int
    text: str
    token_ids: list[int]
    finished: bool


class Close(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forget a choice."""

    number: int


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """What a piece turned out to be; one for each Feed, in order. `error` ends the choice."""

    number: int
    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCallDelta] = []
    reasons: bool = False
    error: str | None = None


Asked = Open | Feed | Close
decode_asked = msgspec.msgpack.Decoder(Asked).decode
decode_parsed = msgspec.msgpack.Decoder(Parsed).decode
_encode = msgspec.msgpack.Encoder().encode


def framed(message: Asked | Parsed) -> bytes:
    """A message with its length in front."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body
