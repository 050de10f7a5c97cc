"""The paths of the Responses API."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_endpoint
from gateway_http.bodies import read_body
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.exchange import EXCHANGE
from gateway_http.generation import GenerationResponse, as_body, as_events
from gateway_http.origin import origin_of
from gateway_http.responses.answers import ResponseWriter
from gateway_http.responses.bodies import (
    Conversation,
    InputTokens,
    ResponseAnswer,
    ResponseRequest,
)
from gateway_http.responses.items import input_items
from gateway_http.responses.requests import prompt_request, response_request, wants_logprobs
from gateway_http.responses.store import ResponseStore, Stored
from gateway_http.token_lists import write_list
from runtime.errors import InvalidRequest
from runtime.turns import in_turns
from wire.generate import Backend
from wire.items import PART_ITEMS, each_item, read_items

_PATH = "/v1/responses"
_EXAMPLE = {"model": "smollm2", "input": "What is the capital of France?"}
_LONG_FIELDS = ("input", "tools")
_Items = list[dict[str, Any]]


def add_responses(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add the endpoints."""
    store = ResponseStore(config)
    _add_create(app, backend, config, store)
    _add_stored(app, store)


def _add_create(
    app: EndpointApp, backend: Backend, config: GatewayConfig, store: ResponseStore
) -> None:
    async def earlier(body: Conversation, principal: str | None) -> tuple[bytes, _Items]:
        """The items before this request's, as JSON and read."""
        if body.previous_response_id is None:
            return b"[]", []
        name = "previous_response_id"
        before = store.get(body.previous_response_id, principal, param=name).items
        return before, await in_turns(read_items(before, name)) or []

    async def create(request: Request) -> Response:
        origin = origin_of(request, "resp", config.request_timeout_s)
        body = await read_body(request, config, ResponseRequest, *_LONG_FIELDS)
        own = input_items(body.input)
        before, items = await earlier(body, origin.principal)
        asked = await in_turns(response_request(body, [*items, *own], origin))
        keeps = store.enabled and body.store is not False
        written = bytes(await write_list(own, PART_ITEMS)) if keeps else b""

        def keep(response: dict[str, Any]) -> None:
            if keeps:
                stored = Stored(
                    principal=origin.principal,
                    response=msgspec.json.encode(response),
                    input=written,
                    items=_joined(before, written, msgspec.json.encode(response["output"])),
                )
                store.put(asked.request_id, stored)

        top = asked.sampling.logprobs if wants_logprobs(body) else None
        created = int(datetime.now(UTC).timestamp())
        # Thousands of items must not live as long as their answer: all would go in its last turn.
        shown = msgspec.structs.replace(body, input=None)
        writer = ResponseWriter(shown, asked.request_id, created, keep, top=top)
        form = as_events(writer, config) if body.stream else as_body(writer, config)
        return GenerationResponse(backend, [asked], form)

    async def count(request: Request) -> Response:
        origin = origin_of(request, "resp", config.request_timeout_s, dry_run=True)
        body = await read_body(request, config, Conversation, *_LONG_FIELDS)
        own = input_items(body.input)
        _, items = await earlier(body, origin.principal)
        asked = await in_turns(prompt_request(body, [*items, *own], origin))
        found = await backend.tokenize(asked)
        return _json(InputTokens(input_tokens=len(found.token_ids)))

    described = describe_endpoint(ResponseRequest, ResponseAnswer, example=_EXAMPLE, events=True)
    app.post(_PATH, summary="Answer a conversation", tags=["openai"], **described)(create)
    app.post(
        f"{_PATH}/input_tokens",
        summary="The tokens of a response's input",
        tags=["openai"],
        **describe_endpoint(Conversation, InputTokens, example=_EXAMPLE),
    )(count)


def _add_stored(app: EndpointApp, store: ResponseStore) -> None:
    async def retrieve(request: Request, response_id: str) -> Response:
        stored = store.get(response_id, _principal(request))
        return Response(stored.response, media_type="application/json")

    async def delete(request: Request, response_id: str) -> Response:
        store.delete(response_id, _principal(request))
        return _json({"id": response_id, "object": "response", "deleted": True})

    async def items(request: Request, response_id: str) -> Response:
        stored = store.get(response_id, _principal(request))
        own = await in_turns(read_items(stored.input, "input")) or ()
        found: _Items = []

        def add(place: int, item: dict[str, Any]) -> None:
            found.append(_named(item, f"{response_id}_{place}"))

        await in_turns(each_item(own, "input", add))
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]}
        data = await write_list(found, PART_ITEMS)
        return _json({"object": "list", "data": data, "has_more": False, **ends})

    async def cancel(request: Request, response_id: str) -> Response:
        store.get(response_id, _principal(request))
        raise InvalidRequest(
            "response_id: only a response in the background can be cancelled", param="response_id"
        )

    path = _PATH + "/{response_id}"
    answer, nothing = describe_endpoint(None, ResponseAnswer), describe_endpoint(None, None)
    tags: dict[str, Any] = {"tags": ["openai"]}
    app.get(path, summary="A stored response", **tags, **answer)(retrieve)
    app.delete(path, summary="Forget a response", **tags, **nothing)(delete)
    app.get(f"{path}/input_items", summary="What it answered", **tags, **nothing)(items)
    app.post(f"{path}/cancel", summary="Never possible here", **tags, **nothing)(cancel)


def _named(item: dict[str, Any], name: str) -> dict[str, Any]:
    """An input item as it is listed: with an id made of `name`, and its text as parts."""
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    more = {} if content is None else {"content": content}
    return {"type": "message", "id": f"msg_{name}", "status": "completed", **item, **more}


def _joined(*lists: bytes) -> bytes:
    """The JSON of one list with the items of all."""
    return b"[%b]" % b",".join(it[1:-1] for it in lists if it != b"[]")


def _principal(request: Request) -> str | None:
    principal: str | None = request.scope[EXCHANGE].principal
    return principal


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
