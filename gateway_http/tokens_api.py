"""vLLM's /tokenize and /detokenize."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_endpoint
from gateway_http.bodies import read_body, read_with_ids
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.origin import origin_of
from gateway_http.token_lists import write_list
from runtime.errors import InvalidRequest
from runtime.turns import Steps, in_turns
from wire.generate import Backend, GenerateRequest
from wire.items import each_item
from wire.sampling import Sampling, TokenId

_LONG_FIELDS = ("messages", "tools", "chat_template_kwargs")


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, or messages as for a chat completion."""

    model: str = ""
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens, how many there are, and how many the model takes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids."""

    model: str = ""
    tokens: list[TokenId]


class DetokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Their text, special tokens included."""

    prompt: str


def tokenize_request(body: TokenizeRequest, request_id: str) -> Steps[GenerateRequest]:
    """The request whose prompt is meant. Raises InvalidRequest naming the field."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("prompt: give either a prompt or messages", param="prompt")
    yield from each_item(body.messages, "messages")
    yield from each_item(body.tools, "tools")
    variables = dict(body.chat_template_kwargs or {})
    for name in ("add_generation_prompt", "continue_final_message"):
        if (value := getattr(body, name)) is not None:
            variables[name] = value
    return GenerateRequest(
        request_id=request_id,
        model=body.model,
        sampling=Sampling(max_tokens=1),
        prompt=body.prompt,
        messages=body.messages,
        tools=body.tools,
        chat_template_kwargs=variables,
        add_special_tokens=body.add_special_tokens is not False,
        stream=False,
    )


def add_tokenize(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add both endpoints."""

    async def tokenize(request: Request) -> Response:
        origin = origin_of(request, "tok", config.request_timeout_s, dry_run=True)
        body = await read_body(request, config, TokenizeRequest, *_LONG_FIELDS)
        asked = await in_turns(tokenize_request(body, origin.request_id))
        found = await backend.tokenize(asked, with_strings=bool(body.return_token_strs))
        strings = found.token_strings
        return _json(
            {
                "count": len(found.token_ids),
                "max_model_len": found.context_length,
                "tokens": await write_list(found.token_ids),
                "token_strs": None if strings is None else await write_list(strings),
            }
        )

    async def detokenize(request: Request) -> Response:
        body, ids = await read_with_ids(request, config, DetokenizeRequest, "tokens")
        tokens = body.tokens if ids is None else ids[0]
        text = await backend.detokenize(body.model, tokens) if tokens else ""
        return _json(DetokenizeAnswer(prompt=text))

    app.post(
        "/tokenize",
        summary="The tokens of a prompt",
        tags=["text"],
        **describe_endpoint(
            TokenizeRequest,
            TokenizeAnswer,
            example={"model": "smollm2", "prompt": "The capital of France is"},
        ),
    )(tokenize)
    app.post(
        "/detokenize",
        summary="The text of some tokens",
        tags=["text"],
        **describe_endpoint(
            DetokenizeRequest, DetokenizeAnswer, example={"model": "smollm2", "tokens": [504, 3575]}
        ),
    )(detokenize)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
