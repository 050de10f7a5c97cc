"""Tool calls as JSON: the form of OpenAI's chat.completion.chunk, choices[].delta.tool_calls."""

from collections.abc import Sequence

import msgspec

from wire.generate import ToolCallDelta


class _Function(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, omit_defaults=True):
    index: int
    id: str | None = None
    type: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[_Call]).decode


def tool_calls_json(calls: Sequence[ToolCallDelta]) -> bytes:
    """A JSON list of what is new in some calls; the first of each says its type."""
    return _encode(
        [
            _Call(
                index=call.index,
                id=call.id,
                type=None if call.id is None else "function",
                function=_Function(name=call.name, arguments=call.arguments),
            )
            for call in calls
        ]
    )


def read_tool_calls(raw: bytes) -> list[ToolCallDelta]:
    """The calls in such a list; raises msgspec.DecodeError."""
    return [
        ToolCallDelta(
            index=call.index,
            id=call.id,
            name=call.function.name,
            arguments=call.function.arguments or "",
        )
        for call in _decode(raw)
    ]
