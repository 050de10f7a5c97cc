"""Where requests go, over HTTP: dry runs, thresholds, and the answer's headers."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.bodies import as_struct, parse_json
from gateway_http.chat import chat_request
from gateway_http.completions import completion_requests
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.intake import read_json_body
from gateway_http.openai import checked_body, decode_json
from gateway_http.origin import RANK_HEADER, WORKER_HEADER, origin_of
from gateway_http.schema import CHAT_FIELDS, ChatCompletionRequest, CompletionRequest
from gateway_http.token_lists import take_ids
from runtime.turns import in_turns
from wire.generate import GenerateRequest, Routing
from wire.routes import Route, Thresholds

_NULL = msgspec.Raw(b"null")


class _Chosen(msgspec.Struct):
    """Enough of a body to tell which of the two it is."""

    messages: msgspec.Raw = _NULL


class ThresholdBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST and DELETE /busy_threshold: names not given stay as they are, null takes one away."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    active_decode_blocks_threshold: (
        Annotated[float, msgspec.Meta(ge=0, le=1)] | msgspec.UnsetType | None
    ) = msgspec.UNSET
    active_prefill_tokens_threshold: (
        Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType | None
    ) = msgspec.UNSET


def route_headers(route: Route) -> list[tuple[bytes, bytes]]:
    """The headers of an answer whose request asked where it went."""
    return [
        (WORKER_HEADER.encode(), route.worker_id.encode()),
        (RANK_HEADER.encode(), b"%d" % route.data_parallel_rank),
        (b"x-penstock-overlap-blocks", b"%d" % route.overlap_blocks),
        (b"x-penstock-prompt-blocks", b"%d" % route.prompt_blocks),
        (b"x-penstock-route-cost", f"{route.cost:g}".encode()),
    ]


def add_routing(app: EndpointApp, routing: Routing, config: GatewayConfig) -> None:
    """Add the paths of a process that routes by itself."""

    @app.post("/v1/route", summary="Say where a request would go", tags=["routing"])
    async def route(request: Request) -> Response:
        source = origin_of(request, "route", config.request_timeout_s, dry_run=True)
        data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
        asked: GenerateRequest
        if (await parse_json(data, _Chosen)).messages != _NULL:
            chat = checked_body(await as_struct(data, config, ChatCompletionRequest, *CHAT_FIELDS))
            asked = await in_turns(chat_request(chat, source))
        else:
            data, ids = await take_ids(data, "prompt", lists=1)
            body = checked_body(await as_struct(data, config, CompletionRequest, "prompt"))
            (asked,) = completion_requests(body, source, max_prompts=1, ids=ids)
        return _json(await routing.route(asked))

    @app.get("/busy_threshold", summary="Every model's busy thresholds", tags=["routing"])
    async def thresholds() -> Response:
        shown = [_shown(model, it) for model, it in routing.thresholds().items()]
        return _json({"thresholds": shown})

    @app.post("/busy_threshold", summary="Read or change a model's", tags=["routing"])
    async def set_thresholds(request: Request) -> Response:
        body = await _body(request)
        known = routing.thresholds_of(body.model)
        changed = {
            ours: value
            for ours, value in (
                ("active_decode_blocks", body.active_decode_blocks_threshold),
                ("active_prefill_tokens", body.active_prefill_tokens_threshold),
            )
            if value is not msgspec.UNSET
        }
        wanted = msgspec.structs.replace(known, **changed)
        return _json(_shown(body.model, routing.set_thresholds(body.model, wanted)))

    @app.delete("/busy_threshold", summary="Take a model's away", tags=["routing"])
    async def clear_thresholds(request: Request) -> Response:
        name = request.query_params.get("model") or (await _body(request)).model
        return _json(_shown(name, routing.set_thresholds(name, Thresholds())))

    async def _body(request: Request) -> ThresholdBody:
        data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
        return decode_json(data, ThresholdBody)


def _shown(model: str, thresholds: Thresholds) -> dict[str, Any]:
    """The names of NVIDIA Dynamo's endpoint, whose clients there are."""
    return {
        "model": model,
        "active_decode_blocks_threshold": thresholds.active_decode_blocks,
        "active_prefill_tokens_threshold": thresholds.active_prefill_tokens,
    }


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
