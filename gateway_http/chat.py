"""A chat completion's body to a GenerateRequest; pure."""

from typing import Any

from gateway_http.openai import sampling_of
from gateway_http.origin import Origin
from gateway_http.parts import texts_in
from gateway_http.schema import ChatCompletionRequest
from runtime.errors import InvalidRequest, UnsupportedValue
from runtime.turns import Steps
from wire.generate import GenerateRequest
from wire.items import each_item
from wire.nesting import nesting_steps

_TEXTS = ("text",)
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def chat_request(body: ChatCompletionRequest, origin: Origin) -> Steps[GenerateRequest]:
    """One chat completion; without a limit the answer runs to the end of the context."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    if body.echo:
        raise UnsupportedValue("echo: not supported for chat", param="echo")
    yield from each_item(body.messages, "messages", _check_message)
    yield from nesting_steps(body.chat_template_kwargs, "chat_template_kwargs")
    yield from each_item(body.tools, "tools")
    yield from each_item(body.functions, "functions")
    tools, tool_choice = _tools(body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    aliases = {"logprobs": "top_logprobs"}
    limit = body.max_tokens
    if body.max_completion_tokens is not None:
        limit = body.max_completion_tokens
        aliases["max_tokens"] = "max_completion_tokens"
    return GenerateRequest(
        request_id=origin.request_id,
        model=body.model,
        sampling=sampling_of(body, {"max_tokens": limit, "logprobs": logprobs}, aliases),
        messages=body.messages,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        separate_reasoning=True,
        separate_tool_calls=True,
        chat_template_kwargs=_template_values(body),
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        stream=bool(body.stream),
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
        **origin.fields(),
    )


def _template_values(body: ChatCompletionRequest) -> dict[str, Any]:
    values = dict(body.chat_template_kwargs or {})
    for name in ("add_generation_prompt", "continue_final_message", "reasoning_effort"):
        value = getattr(body, name)
        if value is not None:
            values[name] = value
    return values


def _tools(body: ChatCompletionRequest) -> tuple[list[dict[str, Any]] | None, Any]:
    """Tools and the choice among them; `functions` and `function_call` are their older names."""
    if not body.functions:
        if body.function_call not in (None, "none", "auto"):
            raise InvalidRequest("function_call: needs functions", param="function_call")
        return body.tools or None, body.tool_choice
    if body.tools:
        raise InvalidRequest("functions: not together with tools", param="functions")
    choice: Any = body.function_call
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    return [{"type": "function", "function": it} for it in body.functions], choice


def _check_message(place: int, message: dict[str, Any]) -> None:
    at = f"messages[{place}]"
    role = message.get("role")
    if role not in _ROLES:
        names = ", ".join(sorted(_ROLES))
        raise InvalidRequest(f"{at}.role: expected one of {names}", param=f"{at}.role")
    content = message.get("content")
    _check_calls(at, message.get("tool_calls"))
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise InvalidRequest(f"{at}.tool_call_id: missing", param=f"{at}.tool_call_id")
    if content is None and role != "assistant":
        raise InvalidRequest(f"{at}.content: missing", param=f"{at}.content")
    if isinstance(content, list):
        for number, text in enumerate(texts_in(content, _TEXTS)):
            if text is None:
                _refuse_part(f"{at}.content[{number}]", content[number])
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(
            f"{at}.content: expected text or a list of parts", param=f"{at}.content"
        )


def _refuse_part(at: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{at}: expected an object with a type", param=at)
    if part["type"] != "text":
        raise UnsupportedValue(
            f"{at}.type: {part['type']!r} is not supported by this model", param=f"{at}.type"
        )
    raise InvalidRequest(f"{at}.text: expected text", param=f"{at}.text")


def _check_calls(at: str, calls: Any) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise InvalidRequest(f"{at}.tool_calls: expected a list", param=f"{at}.tool_calls")
    for number, call in enumerate(calls):
        place = f"{at}.tool_calls[{number}].function"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{place}: expected a name and arguments", param=place)
