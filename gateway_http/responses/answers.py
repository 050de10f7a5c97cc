"""A Responses answer: whole, or as events; kept for later when that is wanted. Pure but for it."""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway_http.answers import finish_reason
from gateway_http.errors import JSON_TYPE, error_json
from gateway_http.responses.bodies import ResponseRequest
from gateway_http.responses.output import EventWriter, Output
from runtime.errors import InternalError, ServingError
from wire.generate import ChoiceDelta, GenerateDelta, Usage

Keep = Callable[[dict[str, Any]], None]
_IN_PROGRESS = "in_progress"


class ResponseWriter:
    """Both forms of the answer (a Body and Events). `keep` gets the response when it is complete.

    `created` is in seconds since the Unix epoch; `top` is how many of the likeliest tokens were
    asked for, None without log probabilities.
    """

    def __init__(
        self, body: ResponseRequest, name: str, created: int, keep: Keep, *, top: int | None
    ) -> None:
        self.complete = False
        self._body = body
        self._name = name
        self._created = created
        self._keep = keep
        self._events = EventWriter()
        self._output = Output(self._events, top)
        self._begun = False
        self._finish: str | None = None
        self._usage: Usage | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the whole answer."""
        return [JSON_TYPE]

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of a whole answer."""
        self.write(prompt, delta)

    def encode(self) -> bytes:
        """The whole answer."""
        return msgspec.json.encode(self._response(self._status))

    def write(self, prompt: int, delta: GenerateDelta) -> bytes:
        """Take the next delta; returns its events."""
        found = b"" if self._begun else self._begin()
        for choice in delta.choices:
            found += self._output.add(choice)
            if choice.finish_reason is not None:
                self._finish = finish_reason(choice.finish_reason)
        if delta.usage is not None:
            self._usage = delta.usage
            found += self._end()
        return found

    def text(self, text: str) -> bytes | None:
        """The events of a delta that is nothing but text; None before the first one."""
        return self._output.add(ChoiceDelta(index=0, text=text)) if self._begun else None

    def error_event(self, error: ServingError) -> bytes:
        """The events that end a broken stream."""
        found = self._output.finish("incomplete")
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": error.message}
        return found + self._events.write("response.failed", {"response": response})

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer when there is none."""
        return error_json(error)

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _begin(self) -> bytes:
        self._begun = True
        fields = {"response": self._response(_IN_PROGRESS)}
        write = self._events.write
        return write("response.created", fields) + write("response.in_progress", fields)

    def _end(self) -> bytes:
        if self._finish is None:
            raise InternalError("the backend ended a request before all of its choices")
        found = self._output.finish(self._status)
        self.complete = True
        response = self._response(self._status)
        self._keep(response)
        return found + self._events.write(f"response.{self._status}", {"response": response})

    def _response(self, status: str) -> dict[str, Any]:
        body = self._body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        text = msgspec.to_builtins(body.text) if body.text is not None else {}
        reasoning = body.reasoning
        return {
            "id": self._name,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": body.model,
            "output": [] if status == _IN_PROGRESS else self._output.items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": _shown_format(text.get("format"))},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_shown_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if self._usage is None else _usage(self._usage),
            "user": body.user,
            "metadata": body.metadata or {},
        }


def _shown_format(given: dict[str, Any] | None) -> dict[str, Any]:
    if not given or given["type"] != "json_schema":
        return {"type": given["type"] if given else "text"}
    named = {"name": "answer", **{key: it for key, it in given.items() if it is not None}}
    return {"description": None, "strict": False, **named}


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": None, **tool}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
