"""A gateway on a free port, and the clients that talk to it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai

from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from gateway_http.http_server import HttpServer
from runtime.access import Access
from wire.generate import Backend, Routing

WAIT_S = 5.0


@asynccontextmanager
async def serving(
    backend: Backend,
    config: GatewayConfig | None = None,
    *,
    access: Access | None = None,
    routing: Routing | None = None,
    verify: ssl.SSLContext | bool = True,
    **options: Any,
) -> AsyncIterator[httpx2.AsyncClient]:
    """`verify` is the client's, `options` are the server's."""
    app = create_app(backend, config or GatewayConfig(), access=access, routing=routing)
    server = HttpServer(app, host="127.0.0.1", port=0, **options)
    url = await server.start()
    try:
        async with httpx2.AsyncClient(
            base_url=url, timeout=WAIT_S, trust_env=False, verify=verify
        ) as client:
            yield client
    finally:
        await server.stop(0.5)


@asynccontextmanager
async def openai_for(
    client: httpx2.AsyncClient, api_key: str = "none", **options: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = str(client.base_url.join("v1"))
    async with openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key, max_retries=0, timeout=WAIT_S, **options
    ) as made:
        yield made


async def wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()
