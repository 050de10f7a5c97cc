"""OpenAI's chat completions and completions over any Backend."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway_http.answer_schema import ChatCompletion, Completion
from gateway_http.answers import Answer
from gateway_http.api_document import describe_endpoint
from gateway_http.bodies import read_body, read_with_ids
from gateway_http.chat import chat_request
from gateway_http.completions import completion_requests, generates_nothing
from gateway_http.config import GatewayConfig
from gateway_http.endpoints import EndpointApp
from gateway_http.generation import GenerationResponse, as_body, as_events
from gateway_http.openai import checked_body
from gateway_http.origin import origin_of
from gateway_http.schema import (
    CHAT_FIELDS,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
)
from gateway_http.sse import ChunkWriter
from gateway_http.whole_answer import WholeAnswer
from runtime.turns import in_turns
from wire.generate import Backend, GenerateRequest

_CHAT = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
}
_TEXT = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 8}


def add_openai(app: EndpointApp, backend: Backend, config: GatewayConfig) -> None:
    """Add both endpoints."""

    def answer(
        body: GenerationBody,
        requests: list[GenerateRequest],
        name: str,
        top: int | None,
        **more: Any,
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
            prompt_logprobs=body.prompt_logprobs is not None,
            include_usage=continuous or bool(options and options.include_usage),
            continuous_usage=continuous,
            **more,
        )
        writer = (
            as_events(ChunkWriter(shared), config)
            if body.stream
            else as_body(WholeAnswer(shared), config)
        )
        return GenerationResponse(backend, requests, writer)

    async def chat_completions(request: Request) -> Response:
        source = origin_of(request, "chatcmpl", config.request_timeout_s)
        body = checked_body(await read_body(request, config, ChatCompletionRequest, *CHAT_FIELDS))
        asked = await in_turns(chat_request(body, source))
        reasoning = body.include_reasoning is not False
        return answer(body, [asked], asked.request_id, asked.sampling.logprobs, reasoning=reasoning)

    async def completions(request: Request) -> Response:
        source = origin_of(request, "cmpl", config.request_timeout_s)
        read, ids = await read_with_ids(
            request, config, CompletionRequest, "prompt", lists=config.max_prompts
        )
        body = checked_body(read)
        asked = completion_requests(body, source, max_prompts=config.max_prompts, ids=ids)
        texts = None
        if generates_nothing(body):
            texts = tuple([await _prompt_text(backend, it) for it in asked])
        return answer(
            body,
            asked,
            source.request_id,
            body.logprobs,
            best=body.n or 1 if body.best_of is not None else None,
            echo=bool(body.echo),
            prompt_texts=texts,
        )

    app.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        tags=["openai"],
        **describe_endpoint(ChatCompletionRequest, ChatCompletion, example=_CHAT, events=True),
    )(chat_completions)
    app.post(
        "/v1/completions",
        summary="Continue a text",
        tags=["openai"],
        **describe_endpoint(CompletionRequest, Completion, example=_TEXT, events=True),
    )(completions)


async def _prompt_text(backend: Backend, request: GenerateRequest) -> str:
    if request.prompt is not None:
        return request.prompt
    return await backend.detokenize(request.model, request.prompt_token_ids or ())
