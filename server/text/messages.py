"""An OpenAI messages list, checked and shaped the way chat templates expect it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.errors import InvalidRequest, Unsupported
from wire.nesting import check_nesting

_TEXT_PARTS = ("text", "input_text", "output_text")


def prepare_messages(
    messages: Sequence[Mapping[str, Any]], *, as_parts: bool = False, wrap: bool = False
) -> list[dict[str, Any]]:
    """Return checked copies of the messages.

    Content that is a list of text parts becomes one text, joined by line ends, or with `as_parts`
    a list of `{"type": "text", "text": ...}`; with `wrap` plain texts become such lists, too.
    Arguments of tool calls become objects where they are JSON texts. Raises InvalidRequest, or
    Unsupported for parts that are not text; `param` names the place.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequest("messages must be a list with at least one entry", param="messages")
    return [_prepare(m, f"messages[{i}]", as_parts, wrap) for i, m in enumerate(messages)]


def _prepare(message: Any, path: str, as_parts: bool, wrap: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{path} must be an object", param=path)
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise InvalidRequest(f"{path}.role must be a text", param=f"{path}.role")
    prepared = dict(message)
    prepared["content"] = _content(message, f"{path}.content", as_parts, wrap)
    if "reasoning" in message:
        # Templates read the older name.
        prepared.setdefault("reasoning_content", message["reasoning"])
    if message.get("tool_calls") is not None:
        prepared["tool_calls"] = _tool_calls(message["tool_calls"], f"{path}.tool_calls")
    return prepared


def _content(message: Mapping[str, Any], path: str, as_parts: bool, wrap: bool) -> Any:
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        content = ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if wrap else content
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{path} must be a text or a list of parts", param=path)
    texts = [_part_text(part, f"{path}[{i}]") for i, part in enumerate(content)]
    if as_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{path} must be an object with a type", param=path)
    if part["type"] not in _TEXT_PARTS:
        raise Unsupported(
            f"{path}.type {part['type']!r} is not supported: only text is", param=f"{path}.type"
        )
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{path}.text must be a text", param=f"{path}.text")
    text: str = part["text"]
    return text


def _tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise InvalidRequest(f"{path} must be a list", param=path)
    return [_tool_call(call, f"{path}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: Any, path: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise InvalidRequest(f"{path} must be an object", param=path)
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    place = f"{path}.function.arguments"
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"{place} is not JSON, or too deep", param=place) from None
    check_nesting(arguments, place)
    return {**call, "function": {**function, "arguments": arguments}}
