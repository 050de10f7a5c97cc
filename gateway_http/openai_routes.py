"""OpenAI's chat completions and completions over any Backend."""

from datetime import UTC, datetime

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.answers import Answer, WholeAnswer
from gateway_http.api_document import describe_generation
from gateway_http.chat import chat_request
from gateway_http.completions import completion_requests
from gateway_http.config import GatewayConfig
from gateway_http.generation import GenerationResponse, as_body, as_events
from gateway_http.intake import read_json_body
from gateway_http.openai import decode_body
from gateway_http.origin import origin_of
from gateway_http.schema import ChatCompletionRequest, CompletionRequest, GenerationBody
from gateway_http.sse import ChunkWriter
from wire.generate import Backend, GenerateRequest


def add_openai(app: FastAPI, backend: Backend, config: GatewayConfig) -> None:
    """Add both endpoints."""

    def answer(
        body: GenerationBody, requests: list[GenerateRequest], name: str, top: int | None
    ) -> GenerationResponse:
        options = body.stream_options
        continuous = bool(options and options.continuous_usage_stats)
        shared = Answer(
            id=name,
            model=body.model,
            created=int(datetime.now(UTC).timestamp()),
            chat=isinstance(body, ChatCompletionRequest),
            prompts=len(requests),
            choices=requests[0].sampling.n,
            top=top,
            token_ids=bool(body.return_token_ids),
            reasoning=getattr(body, "include_reasoning", None) is not False,
            include_usage=continuous or bool(options and options.include_usage),
            continuous_usage=continuous,
        )
        writer = (
            as_events(ChunkWriter(shared), config.retry_after_s)
            if body.stream
            else as_body(WholeAnswer(shared), config.retry_after_s)
        )
        return GenerationResponse(backend, requests, writer)

    async def chat_completions(request: Request) -> Response:
        source = origin_of(request, "chatcmpl", config.request_timeout_s)
        data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
        body = decode_body(data, ChatCompletionRequest)
        asked = chat_request(body, source)
        return answer(body, [asked], asked.request_id, asked.sampling.logprobs)

    async def completions(request: Request) -> Response:
        source = origin_of(request, "cmpl", config.request_timeout_s)
        data = await read_json_body(request, config.max_body_bytes, config.body_timeout_s)
        body = decode_body(data, CompletionRequest)
        asked = completion_requests(body, source, max_prompts=config.max_prompts)
        return answer(body, asked, source.request_id, body.logprobs)

    app.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        tags=["openai"],
        **describe_generation(ChatCompletionRequest),
    )(chat_completions)
    app.post(
        "/v1/completions",
        summary="Continue a text",
        tags=["openai"],
        **describe_generation(CompletionRequest),
    )(completions)
