"""The Responses API's items to chat messages; pure. Every refusal names the place."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway_http.parts import texts_in
from runtime.errors import InvalidRequest, UnsupportedValue
from runtime.turns import Steps
from wire.items import each_item

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")


def input_items(given: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """A request's input as items. Raises InvalidRequest when there is none."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise InvalidRequest("input: missing", param="input")
    return given


def messages_of(
    items: Sequence[dict[str, Any]], instructions: str | None
) -> Steps[list[dict[str, Any]]]:
    """The chat messages that items stand for.

    Thoughts and calls belong to the assistant's message beside them.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    yield from each_item(items, "input", partial(_add_item, messages))
    return messages


def _add_item(messages: list[dict[str, Any]], place: int, item: dict[str, Any]) -> None:
    at = f"input[{place}]"
    match item.get("type", "message"):
        case "message":
            _add_message(messages, item, at)
        case "reasoning":
            _assistant(messages)["reasoning"] = _thoughts(item)
        case "function_call":
            _add_call(_assistant(messages), item, at)
        case "function_call_output":
            messages.append(_tool_result(item, at))
        case other:
            raise UnsupportedValue(f"{at}.type: {other!r} is not supported", param=f"{at}.type")


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _add_message(messages: list[dict[str, Any]], item: dict[str, Any], at: str) -> None:
    role = _ROLES.get(item.get("role") or "")
    if role is None:
        names = ", ".join(sorted(_ROLES))
        raise InvalidRequest(f"{at}.role: expected one of {names}", param=f"{at}.role")
    text = _text(item.get("content"), f"{at}.content")
    last = messages[-1] if messages else None
    if role == "assistant" and last and last["role"] == role and last["content"] is None:
        last["content"] = text
    else:
        messages.append({"role": role, "content": text})


def _text(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{at}: expected text or a list of parts", param=at)
    return "\n".join(
        _other_text(content[place], f"{at}[{place}]") if text is None else text
        for place, text in enumerate(texts_in(content, _TEXTS))
    )


def _other_text(part: Any, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        return str(part.get("refusal", ""))
    if kind not in _TEXTS:
        raise UnsupportedValue(
            f"{at}.type: {kind!r} is not supported by this model", param=f"{at}.type"
        )
    raise InvalidRequest(f"{at}.text: expected text", param=f"{at}.text")


def _thoughts(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "\n".join(str(it.get("text", "")) for it in parts if isinstance(it, dict))


def _add_call(message: dict[str, Any], item: dict[str, Any], at: str) -> None:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise InvalidRequest(f"{at}.{name}: expected text", param=f"{at}.{name}")
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    message.setdefault("tool_calls", []).append(call)


def _tool_result(item: dict[str, Any], at: str) -> dict[str, Any]:
    if not isinstance(item.get("call_id"), str):
        raise InvalidRequest(f"{at}.call_id: expected text", param=f"{at}.call_id")
    content = _text(item.get("output"), f"{at}.output")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
