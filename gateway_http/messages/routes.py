"""The paths of the Messages API."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_endpoint
from gateway_http.bodies import read_body
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.errors import MESSAGES_PATH
from gateway_http.generation import GenerationResponse, as_body, as_events
from gateway_http.messages.answers import MessageWriter
from gateway_http.messages.bodies import Message, MessagesRequest, Prompt, TokenCount
from gateway_http.messages.requests import messages_request, prompt_request
from gateway_http.origin import origin_of
from runtime.turns import in_turns
from wire.generate import Backend

_LONG_FIELDS = ("messages", "tools")
_EXAMPLE = {
    "model": "smollm2",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def add_messages(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add both endpoints."""

    async def create(request: Request) -> Response:
        origin = origin_of(request, "msg", config.request_timeout_s)
        body = await read_body(request, config, MessagesRequest, *_LONG_FIELDS)
        asked = await in_turns(messages_request(body, origin))
        writer = MessageWriter(asked.request_id, body.model)
        form = as_events(writer, config) if body.stream else as_body(writer, config)
        return GenerationResponse(backend, [asked], form)

    async def count(request: Request) -> Response:
        origin = origin_of(request, "msg", config.request_timeout_s, dry_run=True)
        body = await read_body(request, config, Prompt, *_LONG_FIELDS)
        found = await backend.tokenize(await in_turns(prompt_request(body, origin)))
        answer = TokenCount(input_tokens=len(found.token_ids))
        return Response(msgspec.json.encode(answer), media_type="application/json")

    app.post(
        MESSAGES_PATH,
        summary="Answer a conversation, in Anthropic's form",
        tags=["anthropic"],
        **describe_endpoint(MessagesRequest, Message, example=_EXAMPLE, events=True),
    )(create)
    app.post(
        f"{MESSAGES_PATH}/count_tokens",
        summary="The tokens of a prompt, in Anthropic's form",
        tags=["anthropic"],
        **describe_endpoint(Prompt, TokenCount, example=_EXAMPLE),
    )(count)
