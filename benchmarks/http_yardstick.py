"""Servers of chat completions whose engine costs nothing: the gateway, and bare ones beside it.

As a process, `python -m benchmarks.http_yardstick KIND INTERVAL_S`, it prints its URL. `gateway`
is the whole of gateway_http over a backend that answers from memory; `raw` decodes the body and
answers with constant bytes, and is what any server on uvicorn costs; `fastapi` does the same in a
route of FastAPI. A stream has as many events as `max_tokens` says, one per interval.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from benchmarks.ticks import Ticks
from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from gateway_http.http_server import HttpServer
from wire.cards import ModelCard
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, OnText, Tokenized, Usage

MODEL = "sim"
PATH = "/v1/chat/completions"
TEXT = " word"
WHOLE = (
    b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":'
    b'1700000000,"model":"sim","choices":[{"index":0,"message":{"role":"assistant","content":'
    b'" word","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":1,"total_tokens":6}}'
)
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"sim","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
JSON_TYPE = (b"content-type", b"application/json")
EVENTS_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


class Instant:
    """A Backend that has every answer already, and gives one token of it per tick."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._card = ModelCard(
            name=MODEL, path="", context_length=65536, vocab_size=100, block_size=16
        )

    async def models(self) -> list[ModelCard]:
        """The one model."""
        return [self._card]

    async def is_ready(self, model: str | None = None) -> bool:
        """Always."""
        return True

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        """Nothing: it is not measured."""
        return Tokenized(token_ids=[], context_length=self._card.context_length)

    async def detokenize(self, model: str, token_ids: Any) -> str:
        """Nothing: it is not measured."""
        return ""

    async def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        """Yield a delta per tick, or all at once when it is not streamed."""
        count = request.sampling.max_tokens or 1
        if request.stream:
            for _ in range(count - 1):
                await self._ticks.wait()
                yield GenerateDelta(choices=[ChoiceDelta(text=TEXT, token_ids=[7])])
        yield GenerateDelta(
            choices=[ChoiceDelta(text=TEXT, token_ids=[7], finish_reason="length")],
            prompt_tokens=5,
            usage=Usage(prompt_tokens=5, completion_tokens=count),
        )


class Chat(msgspec.Struct):
    """What a bare server reads of a body."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    max_tokens: int = 1


_read = msgspec.json.Decoder(Chat).decode


def raw(ticks: Ticks) -> Any:
    """The bare ASGI application."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        chat = _read(body)
        if not chat.stream:
            headers = [JSON_TYPE, (b"content-length", b"%d" % len(WHOLE))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": WHOLE})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [EVENTS_TYPE]})
        for _ in range(chat.max_tokens - 1):
            await ticks.wait()
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": EVENT + DONE})

    return app


def fastapi(ticks: Ticks) -> Any:
    """The same as a route."""
    app = FastAPI()

    async def events(count: int) -> AsyncIterator[bytes]:
        for _ in range(count - 1):
            await ticks.wait()
            yield EVENT
        yield EVENT + DONE

    @app.post(PATH)
    async def chat(request: Request) -> Response:
        asked = _read(await request.body())
        if asked.stream:
            return StreamingResponse(events(asked.max_tokens), media_type="text/event-stream")
        return Response(WHOLE, media_type="application/json")

    return app


def gateway(ticks: Ticks) -> Any:
    """All of ours."""
    return create_app(Instant(ticks), GatewayConfig())


KINDS = {"raw": raw, "fastapi": fastapi, "gateway": gateway}


async def serve(kind: str, interval_s: float) -> None:
    """Serve until killed."""
    ticks = Ticks(interval_s)
    server = HttpServer(KINDS[kind](ticks), host="127.0.0.1", port=0)
    print(await server.start(), flush=True)
    await ticks.run()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
