"""A Responses body to a GenerateRequest; pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway_http.origin import Origin
from gateway_http.responses.bodies import NOT_OFFERED, Conversation, ResponseRequest
from gateway_http.responses.items import messages_of
from runtime.errors import InvalidRequest, UnsupportedValue
from runtime.turns import Steps
from wire.generate import GenerateRequest
from wire.items import each_item
from wire.sampling import Sampling, make_sampling

_LOGPROBS = "message.output_text.logprobs"
_NAMES = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}


def response_request(
    body: ResponseRequest, items: Sequence[dict[str, Any]], origin: Origin
) -> Steps[GenerateRequest]:
    """The request; `items` are the conversation so far. Raises InvalidRequest naming the field."""
    for name, harmless in NOT_OFFERED.items():
        value = getattr(body, name)
        if value is not None and value not in harmless:
            raise UnsupportedValue(f"{name}: not supported by this server", param=name)
    return msgspec.structs.replace(
        (yield from prompt_request(body, items, origin)),
        sampling=_sampling(body),
        truncate_prompt_tokens=-1 if body.truncation == "auto" else None,
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
        stream=bool(body.stream),
        chat_template_kwargs={**(body.chat_template_kwargs or {}), **_thinking(body)},
    )


def prompt_request(
    body: Conversation, items: Sequence[dict[str, Any]], origin: Origin
) -> Steps[GenerateRequest]:
    """As much of the request as its prompt is made of."""
    tools: list[dict[str, Any]] = []
    yield from each_item(body.tools, "tools", lambda place, it: tools.append(_tool(place, it)))
    tools, choice = _chosen(tools, body)
    return GenerateRequest(
        request_id=origin.request_id,
        model=body.model,
        sampling=Sampling(),
        messages=(yield from messages_of(items, body.instructions)),
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        separate_reasoning=True,
        separate_tool_calls=True,
        chat_template_kwargs=_thinking(body),
        **origin.fields(),
    )


def wants_logprobs(body: ResponseRequest) -> bool:
    """Whether log probabilities are to be shown."""
    return _LOGPROBS in (body.include or ()) or body.top_logprobs is not None


def _thinking(body: Conversation) -> dict[str, Any]:
    effort = body.reasoning.effort if body.reasoning is not None else None
    if effort is None:
        return {}
    if effort == "none":
        return {"enable_thinking": False, "thinking": False}
    return {"reasoning_effort": effort}


def _sampling(body: ResponseRequest) -> Sampling:
    values: dict[str, Any] = {
        "max_tokens": body.max_output_tokens,
        "logprobs": (body.top_logprobs or 0) if wants_logprobs(body) else None,
        "structured_outputs": _structure(body),
    }
    for name in ("temperature", "top_p", "seed", "top_k", "min_p"):
        values[name] = getattr(body, name)
    try:
        return make_sampling({name: value for name, value in values.items() if value is not None})
    except InvalidRequest as error:
        theirs = _NAMES.get(error.param or "")
        if theirs is None:
            raise
        text = error.message.replace(error.param or "", theirs, 1)
        raise InvalidRequest(text, param=theirs) from None


def _structure(body: ResponseRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.schema is None:
        raise InvalidRequest("text.format.schema: missing", param="text.format.schema")
    return {"json": wanted.schema}


def _chosen(tools: list[dict[str, Any]], body: Conversation) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be called, and the choice among them."""
    choice = body.tool_choice
    if not isinstance(choice, dict):
        return tools, choice
    match choice.get("type"):
        case "function":
            return tools, {"type": "function", "function": {"name": choice.get("name")}}
        case "allowed_tools":
            names = {it.get("name") for it in choice.get("tools") or () if isinstance(it, dict)}
            allowed = [tool for tool in tools if tool["function"]["name"] in names]
            return allowed, choice.get("mode")
        case other:
            raise UnsupportedValue(
                f"tool_choice.type: {other!r} is not supported", param="tool_choice.type"
            )


def _tool(place: int, tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        at = f"tools[{place}].type"
        raise UnsupportedValue(f"{at}: {kind!r} is not offered by this server", param=at)
    wanted = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {it: tool[it] for it in wanted if it in tool}}
