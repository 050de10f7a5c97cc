"""A Messages body to a GenerateRequest; pure. Every refusal names the place."""

from functools import partial
from typing import Any

import msgspec

from gateway_http.messages.bodies import MessagesRequest, Prompt
from gateway_http.origin import Origin
from gateway_http.parts import texts_in
from runtime.errors import InvalidRequest, UnsupportedValue
from runtime.turns import Steps
from wire.generate import GenerateRequest
from wire.items import each_item
from wire.sampling import Sampling, make_sampling

_TEXTS = ("text",)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def messages_request(body: MessagesRequest, origin: Origin) -> Steps[GenerateRequest]:
    """The request. Raises InvalidRequest naming the field."""
    for name in ("container", "mcp_servers"):
        if getattr(body, name):
            raise UnsupportedValue(f"{name}: not supported by this server", param=name)
    values = {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }
    return msgspec.structs.replace(
        (yield from prompt_request(body, origin)),
        sampling=_sampling({name: it for name, it in values.items() if it is not None}),
        stream=bool(body.stream),
    )


def prompt_request(body: Prompt, origin: Origin) -> Steps[GenerateRequest]:
    """As much of the request as its prompt is made of."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system, "system")})
    yield from each_item(body.messages, "messages", partial(_add_message, messages))
    tools: list[dict[str, Any]] = []
    yield from each_item(body.tools, "tools", lambda place, it: tools.append(_tool(place, it)))
    choice = body.tool_choice
    return GenerateRequest(
        request_id=origin.request_id,
        model=body.model,
        sampling=Sampling(),
        messages=messages,
        tools=tools or None,
        tool_choice=_choice(body),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        separate_reasoning=True,
        separate_tool_calls=True,
        chat_template_kwargs=_thinking(body),
        **origin.fields(),
    )


def _sampling(values: dict[str, Any]) -> Sampling:
    try:
        return make_sampling(values)
    except InvalidRequest as error:
        if error.param != "stop":
            raise
        text = error.message.replace("stop", "stop_sequences", 1)
        raise InvalidRequest(text, param="stop_sequences") from None


def _thinking(body: Prompt) -> dict[str, Any]:
    if body.thinking is None:
        return {}
    thinks = body.thinking.type != "disabled"
    return {"enable_thinking": thinks, "thinking": thinks}


def _choice(body: Prompt) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return _CHOICES[choice.type]


def _tool(place: int, tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.get("type", "custom")
    if kind != "custom":
        at = f"tools[{place}].type"
        raise UnsupportedValue(f"{at}: {kind!r} is not offered by this server", param=at)
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _add_message(messages: list[dict[str, Any]], place: int, message: dict[str, Any]) -> None:
    at = f"messages[{place}]"
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"{at}.role: expected user or assistant", param=f"{at}.role")
    if isinstance(content, str):
        messages.append({"role": role, "content": content})
        return
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{at}.content: expected text or a list of blocks", param=f"{at}.content"
        )
    made: dict[str, Any] = {"role": role, "content": None}
    texts: list[str] = []
    for number, text in enumerate(texts_in(content, _TEXTS)):
        if text is None:
            _add_block(messages, made, content[number], f"{at}.content[{number}]")
        else:
            texts.append(text)
    if texts:
        made["content"] = "\n".join(texts)
    if len(made) > 2 or texts:
        messages.append(made)


def _add_block(messages: list[dict[str, Any]], made: dict[str, Any], block: Any, at: str) -> None:
    """Add to the message `made`; results of tools are messages of their own."""
    match block:
        case {"type": "thinking", "thinking": str(text)}:
            made["reasoning"] = text
        case {"type": "redacted_thinking"}:
            pass
        case {"type": "tool_use", "id": str(name), "name": str(function)}:
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            call = {"name": function, "arguments": arguments}
            made.setdefault("tool_calls", []).append(
                {"id": name, "type": "function", "function": call}
            )
        case {"type": "tool_result", "tool_use_id": str(name)}:
            text = _text(block.get("content") or "", f"{at}.content")
            messages.append({"role": "tool", "tool_call_id": name, "content": text})
        case {"type": "text" | "thinking" | "tool_use" | "tool_result" as kind}:
            raise InvalidRequest(f"{at}: a {kind} block lacks a field", param=at)
        case _:
            kind = block.get("type") if isinstance(block, dict) else None
            raise UnsupportedValue(
                f"{at}.type: {kind!r} is not supported by this model", param=f"{at}.type"
            )


def _text(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for place, block in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(block, dict) or block.get("type") != "text":
            where = f"{at}[{place}].type"
            raise UnsupportedValue(f"{where}: only text is supported here", param=where)
        texts.append(str(block.get("text", "")))
    return "\n".join(texts)
