"""What a model says as the Responses API's output items, and the events that tell of them; pure.

Events are those of OpenAI's ResponseStreamEvent, in its order: an item is added, its parts are
added, grow and are done, the item is done.
"""

from typing import Any

import msgspec

from gateway_http.logprobs import chat_logprobs
from runtime.ids import new_id
from wire.generate import ChoiceDelta, ToolCallDelta

_json = msgspec.json.Encoder().encode
_Fields = dict[str, Any]


class EventWriter:
    """Numbers events and writes them."""

    def __init__(self) -> None:
        self._number = 0

    def write(self, kind: str, fields: _Fields) -> bytes:
        """One event."""
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _json(body))

    def write_delta(self, kind: bytes, place: bytes, text: str) -> bytes:
        """The event of more text: of every token, therefore from a template."""
        number, self._number = self._number, self._number + 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b"delta":%b}\n\n' % (
            kind, kind, number, place, _json(text),
        )  # fmt: skip


class Output:
    """Takes one choice's deltas: keeps the items, returns the events. `top`: see Answer."""

    def __init__(self, events: EventWriter, top: int | None = None) -> None:
        self.items: list[_Fields] = []
        self._events = events
        self._top = top
        self._text: list[str] = []
        self._open = ""
        self._call = -1
        self._place = b""

    def add(self, part: ChoiceDelta) -> bytes:
        """Take the next delta."""
        found = b""
        if part.reasoning:
            found += self._begin("reasoning") + self._grow(
                b"response.reasoning_text.delta", part.reasoning
            )
        if part.text:
            found += self._begin("message") + self._grow(b"response.output_text.delta", part.text)
        if part.logprobs and self._top is not None and self._open == "message":
            content = self.items[-1]["content"][0]
            content["logprobs"] += chat_logprobs(part.logprobs, self._top)["content"]
        for call in part.tool_calls:
            found += self._add_call(call)
        return found

    def finish(self, status: str) -> bytes:
        """End the item that is open: `status` is "completed" or "incomplete"."""
        return self._end(status)

    def _add_call(self, call: ToolCallDelta) -> bytes:
        found = b""
        if call.id is not None:
            found += self._end("completed")
            self._call = call.index
            self._open = "function_call"
            found += self._add_item(
                {
                    "id": new_id("fc"),
                    "type": "function_call",
                    "status": "in_progress",
                    "call_id": call.id,
                    "name": call.name,
                    "arguments": "",
                },
                part=b"",
            )
        if call.arguments:
            found += self._grow(b"response.function_call_arguments.delta", call.arguments)
        return found

    def _begin(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        found = self._end("completed")
        self._open = kind
        if kind == "reasoning":
            item: _Fields = {"id": new_id("rs"), "type": kind, "status": "in_progress"}
            item |= {"summary": [], "content": []}
            part: _Fields = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": new_id("msg"), "type": kind, "status": "in_progress"}
            item |= {"role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        more = b'"content_index":0,' + (b'"logprobs":[],' if kind == "message" else b"")
        found += self._add_item(item, part=more)
        where = {"item_id": item["id"], "output_index": len(self.items) - 1, "content_index": 0}
        found += self._events.write("response.content_part.added", {**where, "part": part})
        item["content"] = [part]
        return found

    def _add_item(self, item: _Fields, *, part: bytes) -> bytes:
        index = len(self.items)
        self.items.append(item)
        self._place = b'"item_id":%b,"output_index":%d,%b' % (_json(item["id"]), index, part)
        fields = {"output_index": index, "item": item}
        return self._events.write("response.output_item.added", fields)

    def _grow(self, kind: bytes, text: str) -> bytes:
        self._text.append(text)
        return self._events.write_delta(kind, self._place, text)

    def _end(self, status: str) -> bytes:
        if not self._open:
            return b""
        kind, self._open = self._open, ""
        text, self._text = "".join(self._text), []
        item = self.items[-1]
        item["status"] = status
        where: _Fields = {"item_id": item["id"], "output_index": len(self.items) - 1}
        write = self._events.write
        if kind == "function_call":
            item["arguments"] = text
            fields = {**where, "name": item["name"], "arguments": text}
            found = write("response.function_call_arguments.done", fields)
        else:
            part = item["content"][0]
            part["text"] = text
            where["content_index"] = 0
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            more = {"logprobs": part["logprobs"]} if kind == "message" else {}
            found = write(f"response.{name}.done", {**where, "text": text, **more})
            found += write("response.content_part.done", {**where, "part": part})
        done = {"output_index": where["output_index"], "item": item}
        return found + write("response.output_item.done", done)
