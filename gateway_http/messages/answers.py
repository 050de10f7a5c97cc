"""An answer of the Messages API: whole, or as events; pure.

Events are those of Anthropic's RawMessageStreamEvent: a message starts, each of its blocks starts,
grows and stops, the message is completed by its reason to stop and stops.
"""

from typing import Any

import msgspec

from gateway_http.answers import finish_reason
from gateway_http.errors import JSON_TYPE, anthropic_error_json
from runtime.errors import InternalError, ServingError
from wire.generate import ChoiceDelta, GenerateDelta, Usage

_json = msgspec.json.Encoder().encode
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {
    "text": b'{"type":"text_delta","text":%b}',
    "thinking": b'{"type":"thinking_delta","thinking":%b}',
    "tool_use": b'{"type":"input_json_delta","partial_json":%b}',
}


class MessageWriter:
    """Both forms of the answer (a Body and Events)."""

    def __init__(self, name: str, model: str) -> None:
        self.complete = False
        self._name = name
        self._model = model
        self._blocks: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._open = ""
        self._begun = False
        self._finish: str | None = None
        self._stop: str | None = None
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the whole answer."""
        return [JSON_TYPE]

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of a whole answer."""
        self.write(prompt, delta)

    def encode(self) -> bytes:
        """The whole answer."""
        return _json(self._message(self._blocks))

    def write(self, prompt: int, delta: GenerateDelta) -> bytes:
        """Take the next delta; returns its events."""
        found = b"" if self._begun else self._begin(delta)
        for choice in delta.choices:
            found += self._add(choice)
        if delta.usage is not None:
            self._usage = delta.usage
            found += self._end()
        return found

    def text(self, text: str) -> bytes | None:
        """The events of a delta that is nothing but text; None before the first one."""
        return self._add(ChoiceDelta(index=0, text=text)) if self._begun else None

    def error_event(self, error: ServingError) -> bytes:
        """The event that ends a broken stream."""
        return b"event: error\ndata: %b\n\n" % anthropic_error_json(error)

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer when there is none."""
        return anthropic_error_json(error)

    def _begin(self, delta: GenerateDelta) -> bytes:
        self._begun = True
        self._usage = Usage(prompt_tokens=delta.prompt_tokens, completion_tokens=0)
        start = _event("message_start", {"message": self._message([])})
        return start + _event("ping", {})

    def _add(self, part: ChoiceDelta) -> bytes:
        found = b""
        if part.reasoning:
            found += self._block({"type": "thinking", "thinking": "", "signature": ""})
            found += self._grow(part.reasoning)
        if part.text:
            found += self._block({"type": "text", "text": "", "citations": None})
            found += self._grow(part.text)
        for call in part.tool_calls:
            if call.id is not None:
                found += self._stop_block()
                block: dict[str, Any] = {
                    "type": "tool_use",
                    "id": call.id,
                    "name": call.name,
                    "input": {},
                }
                found += self._block(block)
            if call.arguments:
                found += self._grow(call.arguments)
        if part.finish_reason is not None:
            self._finish = finish_reason(part.finish_reason)
            self._stop = part.stop_reason if isinstance(part.stop_reason, str) else None
        return found

    def _block(self, block: dict[str, Any]) -> bytes:
        """Start a block, unless one of its kind is open."""
        if self._open == block["type"]:
            return b""
        found = self._stop_block()
        self._open = block["type"]
        self._blocks.append(block)
        fields = {"index": len(self._blocks) - 1, "content_block": block}
        return found + _event("content_block_start", fields)

    def _grow(self, text: str) -> bytes:
        self._text.append(text)
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
            % (len(self._blocks) - 1)
            + _DELTAS[self._open] % _json(text)
            + b"}\n\n"
        )

    def _stop_block(self) -> bytes:
        if not self._open:
            return b""
        kind, self._open = self._open, ""
        text, self._text = "".join(self._text), []
        if kind == "tool_use":
            self._blocks[-1]["input"] = _arguments(text)
        else:
            self._blocks[-1][kind] = text
        return _event("content_block_stop", {"index": len(self._blocks) - 1})

    def _end(self) -> bytes:
        if self._finish is None:
            raise InternalError("the backend ended a request before all of its choices")
        found = self._stop_block()
        self.complete = True
        ending = self._message([])
        names = ("stop_reason", "stop_sequence")
        fields = {"delta": {it: ending[it] for it in names}, "usage": ending["usage"]}
        return found + _event("message_delta", fields) + _event("message_stop", {})

    def _message(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        stopped = self._finish == "stop" and self._stop is not None
        reason = None if self._finish is None else _REASONS.get(self._finish, "end_turn")
        usage = self._usage
        return {
            "id": self._name,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": "stop_sequence" if stopped else reason,
            "stop_sequence": self._stop if stopped else None,
            "usage": {
                "input_tokens": usage.prompt_tokens - usage.cached_tokens,
                "output_tokens": usage.completion_tokens,
                "cache_read_input_tokens": usage.cached_tokens,
                "cache_creation_input_tokens": 0,
            },
        }


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json({"type": kind, **fields}))


def _arguments(text: str) -> Any:
    """A call's arguments; a model that was cut off or wrote no JSON has said none."""
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.MsgspecError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
