"""OpenAI's JSON to GenerateRequest; pure. Every refusal names the field in `param`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from gateway_http.origin import Origin
from gateway_http.schema import (
    HARMLESS,
    SHARED_WITH_SAMPLING,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
    ResponseFormat,
)
from runtime.errors import InvalidRequest, UnsupportedValue
from wire.generate import GenerateRequest
from wire.nesting import check_nesting
from wire.sampling import Sampling, TokenId, make_sampling

DEFAULT_COMPLETION_TOKENS = 16
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MISSING = re.compile(r"missing required field `(\w+)`")
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*?)`$")
_Json = TypeVar("_Json")
_Body = TypeVar("_Body", bound=GenerationBody)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatCompletionRequest, CompletionRequest)
}


def decode_json(data: bytes, kind: type[_Json]) -> _Json:
    """Parse and type-check a JSON body. Raises InvalidRequest naming the field."""
    decoder = _DECODERS.get(kind) or msgspec.json.Decoder(kind)
    try:
        body: _Json = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body's JSON is nested too deeply") from None
    return body


def decode_body(data: bytes, kind: type[_Body]) -> _Body:
    """Parse and check the body of a generation. Raises InvalidRequest, or UnsupportedValue."""
    body = decode_json(data, kind)
    for name, harmless in HARMLESS.items():
        value = getattr(body, name, None)
        if value is not None and value not in harmless:
            raise UnsupportedValue(f"{name}: not supported by this server yet", param=name)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise UnsupportedValue("best_of: only the value of n is supported", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options: only allowed when stream is true", param="stream_options"
        )
    return body


def _type_error(text: str) -> InvalidRequest:
    # msgspec words it "Expected `int`, got `str` - at `$.max_tokens`".
    found = _PATH.search(text)
    path = found.group(1) if found else ""
    what = text[: found.start()] if found else text
    missing = _MISSING.search(what)
    if missing:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return InvalidRequest(f"{path}: missing", param=path)
    what = what[0].lower() + what[1:]
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)


def chat_request(body: ChatCompletionRequest, origin: Origin) -> GenerateRequest:
    """One chat completion; without a limit the answer runs to the end of the context."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    if body.echo:
        raise UnsupportedValue("echo: not supported for chat", param="echo")
    check_nesting(body.messages, "messages")
    check_nesting(body.chat_template_kwargs, "chat_template_kwargs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    aliases = {"logprobs": "top_logprobs"}
    limit = body.max_tokens
    if body.max_completion_tokens is not None:
        limit = body.max_completion_tokens
        aliases["max_tokens"] = "max_completion_tokens"
    return GenerateRequest(
        request_id=origin.request_id,
        model=body.model,
        sampling=_sampling(body, {"max_tokens": limit, "logprobs": logprobs}, aliases),
        messages=[_message(place, message) for place, message in enumerate(body.messages)],
        chat_template_kwargs=_template_values(body),
        stream=bool(body.stream),
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
        **origin.fields(),
    )


def completion_requests(
    body: CompletionRequest, origin: Origin, *, max_prompts: int
) -> list[GenerateRequest]:
    """One generation per prompt, in order; at most `max_prompts`."""
    if body.echo and body.logprobs is not None:
        raise UnsupportedValue("logprobs: not supported together with echo yet", param="logprobs")
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = _sampling(body, {"max_tokens": limit, "logprobs": body.logprobs}, {})
    prompts = _prompts(body.prompt)
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"prompt: more than {max_prompts} prompts", param="prompt")
    return [
        GenerateRequest(
            request_id=f"{origin.request_id}-{place}" if len(prompts) > 1 else origin.request_id,
            model=body.model,
            sampling=sampling,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            stream=bool(body.stream),
            echo=bool(body.echo),
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            **origin.fields(),
        )
        for place, prompt in enumerate(prompts)
    ]


def _sampling(
    body: GenerationBody, changed: Mapping[str, Any], aliases: Mapping[str, str]
) -> Sampling:
    values = {name: getattr(body, name) for name in SHARED_WITH_SAMPLING}
    values.update(changed)
    if body.response_format is not None:
        values["structured_outputs"] = _structure(body.response_format, body.structured_outputs)
    try:
        return make_sampling({name: value for name, value in values.items() if value is not None})
    except InvalidRequest as error:
        ours = error.param or ""
        theirs = aliases.get(ours)
        if theirs is None:
            raise
        raise InvalidRequest(error.message.replace(ours, theirs, 1), param=theirs) from None


def _structure(wanted: ResponseFormat, own: dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted.type == "text":
        return own
    if own:
        raise InvalidRequest(
            "structured_outputs: not together with response_format", param="structured_outputs"
        )
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        name = "response_format.json_schema"
        raise InvalidRequest(f"{name}: a schema is needed for type json_schema", param=name)
    return {"json": wanted.json_schema.schema}


def _template_values(body: ChatCompletionRequest) -> dict[str, Any]:
    values = dict(body.chat_template_kwargs or {})
    for name in ("add_generation_prompt", "continue_final_message", "reasoning_effort"):
        value = getattr(body, name)
        if value is not None:
            values[name] = value
    return values


def _message(place: int, message: dict[str, Any]) -> dict[str, Any]:
    at = f"messages[{place}]"
    role = message.get("role")
    if role not in _ROLES:
        names = ", ".join(sorted(_ROLES))
        raise InvalidRequest(f"{at}.role: expected one of {names}", param=f"{at}.role")
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequest(f"{at}.content: missing", param=f"{at}.content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            _check_part(f"{at}.content[{number}]", part)
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(
            f"{at}.content: expected text or a list of parts", param=f"{at}.content"
        )
    return message


def _check_part(at: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{at}: expected an object with a type", param=at)
    if part["type"] != "text":
        raise UnsupportedValue(
            f"{at}.type: {part['type']!r} is not supported by this model", param=f"{at}.type"
        )
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{at}.text: expected text", param=f"{at}.text")


def _prompts(prompt: str | list[Any]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt: empty list", param="prompt")
    try:
        if isinstance(prompt[0], str):
            return msgspec.convert(prompt, list[str])
        if isinstance(prompt[0], list):
            lists = msgspec.convert(prompt, list[list[TokenId]])
        else:
            lists = [msgspec.convert(prompt, list[TokenId])]
    except msgspec.ValidationError as error:
        what = _type_error(str(error)).message
        raise InvalidRequest(
            f"prompt: expected text, token ids, or a list of either ({what})", param="prompt"
        ) from None
    if not all(lists):
        raise InvalidRequest("prompt: a prompt needs at least one token", param="prompt")
    return lists
