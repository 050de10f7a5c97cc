"""KServe v2 over HTTP: what gRPC offers to text clients, as JSON, over any Backend."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec
from google.protobuf.json_format import MessageToDict
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.api_document import describe_kserve
from gateway_http.bodies import parse_json
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.generation import GenerationResponse, as_body, as_events
from gateway_http.intake import read_json_body
from gateway_http.kserve_answers import (
    HEADER_LENGTH,
    GenerateAnswer,
    GenerateEvents,
    InferAnswer,
)
from gateway_http.kserve_json import InferBody, generate_message, infer_message
from gateway_http.openai import decode_json
from gateway_http.origin import Origin, origin_of
from gateway_http.token_lists import read_ids, take_ids
from runtime.errors import InvalidRequest, ModelNotFound
from runtime.rpc import CallInfo
from runtime.turns import Steps, in_turns
from wire.cards import ModelCard
from wire.generate import Backend, GenerateRequest
from wire.inference_pb2 import ModelInferRequest
from wire.items import is_long
from wire.kserve_terms import check_version
from wire.tensors import INTEGERS
from wire.text_inputs import INPUT_IDS, STREAM, OutputSelection
from wire.text_request import decode_text_request
from wire.text_schema import MODEL_VERSION, model_config, model_metadata

EXTENSIONS = (
    "binary_tensor_data", "generate", "model_configuration", "model_repository", "parameters",
    "schedule_policy",
)  # fmt: skip
_MODEL = "/v2/models/{name:path}"
_VERSION = _MODEL + "/versions/{asked}"
_TAG = "kserve"
_INDEX_BYTES = 4096
_INDEX_S = 10.0
_Handler = Callable[..., Awaitable[Response]]


def add_kserve(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add every path below /v2."""
    _add_server(app, backend)
    # Before the models' own paths: a name may hold slashes.
    _add_inference(app, backend, config)
    _add_models(app, backend)


def _add_server(app: EndpointApp, backend: Backend) -> None:
    @app.get("/v2", summary="Describe the server", tags=[_TAG])
    async def server() -> Response:
        return _json({"name": "penstock", "version": version("penstock"), "extensions": EXTENSIONS})

    @app.get("/v2/health/live", summary="Whether the process answers", tags=[_TAG])
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready", summary="Whether a model has a worker", tags=[_TAG])
    async def ready() -> Response:
        is_ready = await backend.is_ready()
        return _json({"live": True, "ready": is_ready}, 200 if is_ready else 503)

    @app.post("/v2/repository/index", summary="List the models", tags=[_TAG])
    async def index(request: Request) -> Response:
        data = await read_json_body(request, _INDEX_BYTES, _INDEX_S, binary=True)
        only_ready = bool(data.strip()) and decode_json(data, _IndexBody).ready
        states = [(card.name, await backend.is_ready(card.name)) for card in await backend.models()]
        return _json([_state(*it) for it in states if it[1] or not only_ready])


def _add_models(app: EndpointApp, backend: Backend) -> None:
    async def card_of(name: str, asked: str) -> ModelCard:
        check_version(name, asked)
        for card in await backend.models():
            if name in card.names:
                return card
        raise ModelNotFound(f"model {name!r} is not served here", param="model")

    async def ready(name: str, asked: str = "") -> Response:
        is_ready = asked in ("", MODEL_VERSION) and await backend.is_ready(name)
        return _json({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    async def configuration(name: str, asked: str = "") -> Response:
        message = model_config(await card_of(name, asked)).config
        shown = MessageToDict(message, preserving_proto_field_name=True)
        for tensor in shown["input"] + shown["output"]:
            # Triton has numbers where protobuf's JSON has int64 as texts.
            tensor["dims"] = [int(size) for size in tensor["dims"]]
        return _json(shown)

    async def metadata(name: str, asked: str = "") -> Response:
        message = model_metadata(await card_of(name, asked))
        return _json(
            {
                "name": message.name,
                "versions": list(message.versions),
                "platform": message.platform,
                "inputs": [_tensor(it) for it in message.inputs],
                "outputs": [_tensor(it) for it in message.outputs],
            }
        )

    for end, handler, summary in (
        ("/ready", ready, "Whether a model has a worker"),
        ("/config", configuration, "A model's configuration"),
        ("", metadata, "A model's inputs and outputs"),
    ):
        for path in (_VERSION, _MODEL):
            app.get(path + end, summary=summary, tags=[_TAG])(handler)


def _add_inference(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    async def read(request: Request, *, binary: bool = False) -> bytes:
        return await read_json_body(
            request, config.max_body_bytes, config.body_timeout_s, binary=binary
        )

    async def infer(request: Request, name: str, asked: str = "") -> Response:
        source = origin_of(request, "infer", config.request_timeout_s)
        data, behind = _parted(await read(request, binary=True), request)

        body = await parse_json(data, InferBody)
        read_apart = {
            tensor.name: ids
            for tensor in body.inputs
            if tensor.name == INPUT_IDS
            and tensor.datatype in INTEGERS
            and tensor.data
            and (ids := await read_ids(bytes(tensor.data), INPUT_IDS)) is not None
        }

        def make() -> ModelInferRequest:
            return infer_message(body, behind, name, asked, read_apart)

        message = await _made(make, off_loop=is_long(data) and not read_apart)
        it = await in_turns(_decoded(message, source))
        answer = InferAnswer(it.shown, it.selection, body.wants_binary)
        return GenerationResponse(backend, [it.run], as_body(answer, config))

    async def generation(request: Request, name: str, asked: str, *, stream: bool) -> _Decoded:
        source = origin_of(request, "generate", config.request_timeout_s)
        data, lists = await take_ids(await read(request), INPUT_IDS)
        ids = lists[0] if lists else None

        def make() -> ModelInferRequest:
            body = decode_json(data, dict[str, Any])
            return generate_message(body, name, asked, stream=stream, ids=ids)

        message = await _made(make, off_loop=is_long(data))
        return await in_turns(_decoded(message, source, stream=stream))

    async def generate(request: Request, name: str, asked: str = "") -> Response:
        it = await generation(request, name, asked, stream=False)
        answer = GenerateAnswer(it.shown, it.selection)
        return GenerationResponse(backend, [it.run], as_body(answer, config))

    async def generate_stream(request: Request, name: str, asked: str = "") -> Response:
        it = await generation(request, name, asked, stream=True)
        events = GenerateEvents(it.shown, it.selection)
        return GenerationResponse(backend, [it.run], as_events(events, config))

    for end, handler, summary in (
        ("/infer", infer, "Answer tensors with tensors"),
        ("/generate", generate, "Answer a text as JSON"),
        ("/generate_stream", generate_stream, "Answer a text as server-sent events"),
    ):
        for path in (_VERSION, _MODEL):
            app.post(path + end, summary=summary, tags=[_TAG], **describe_kserve(end))(handler)


class _Decoded(NamedTuple):
    """The request as its answer names it, as the backend gets it, and what the answer holds."""

    shown: GenerateRequest
    run: GenerateRequest
    selection: OutputSelection


async def _made(make: Callable[[], ModelInferRequest], *, off_loop: bool) -> ModelInferRequest:
    return await asyncio.to_thread(make) if off_loop else make()


def _decoded(
    message: ModelInferRequest, source: Origin, *, stream: bool = False
) -> Steps[_Decoded]:
    check_version(message.model_name, message.model_version)
    metadata = {} if source.traceparent is None else {"traceparent": source.traceparent}
    info = CallInfo(
        method=source.endpoint,
        metadata=metadata,
        deadline_s=source.deadline_s,
        principal=source.principal,
    )
    shown, selection = yield from decode_text_request(message, info, streaming_rpc=True)
    if shown.stream and not stream:
        raise InvalidRequest("stream: use generate_stream to stream", param=STREAM)
    limits = [it for it in (shown.timeout_s, source.timeout_s) if it is not None]
    rank = shown.data_parallel_rank
    run = msgspec.structs.replace(
        shown,
        request_id=shown.request_id or source.request_id,
        timeout_s=min(limits, default=None),
        pinned_worker=shown.pinned_worker or source.pinned_worker,
        data_parallel_rank=source.data_parallel_rank if rank is None else rank,
        explain_route=shown.explain_route or source.explain_route,
    )
    return _Decoded(shown, run, selection)


def _parted(body: bytes, request: Request) -> tuple[bytes, bytes]:
    """The JSON, and the tensors behind it."""
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return body, b""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= len(body)):
        raise InvalidRequest(
            f"{HEADER_LENGTH}: expected a whole number, at most the body's {len(body)} bytes, "
            f"got {text[:40]!r}",
            param=HEADER_LENGTH,
        )
    return body[: int(text)], body[int(text) :]


class _IndexBody(msgspec.Struct, frozen=True):
    ready: bool = False


def _state(name: str, ready: bool) -> dict[str, Any]:
    return {
        "name": name,
        "version": MODEL_VERSION,
        "state": "READY" if ready else "UNAVAILABLE",
        "reason": "" if ready else "no ready worker",
    }


def _tensor(metadata: Any) -> dict[str, Any]:
    return {
        "name": metadata.name,
        "datatype": metadata.datatype,
        "shape": list(metadata.shape),
    }


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
