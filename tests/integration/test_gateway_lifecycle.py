"""Clients that go away, and servers that stop."""

import asyncio
import json

import httpx2
import pytest

from gateway_http.app import create_app
from gateway_http.config import GatewayConfig
from gateway_http.http_server import HttpServer
from runtime.errors import InvalidConfig
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import WAIT_S, serving, wait_for

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_cancels(stream):
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend) as http, asyncio.TaskGroup() as group:
        asked = group.create_task(
            http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        )
        await wait_for(backend.started)
        asked.cancel()
        await wait_for(backend.cancelled)
    assert backend.running == 0


async def test_a_client_that_leaves_between_tokens_cancels():
    backend = ScriptedBackend("Par", asyncio.Event())
    async with serving(backend) as http:
        body = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_lines())
        await wait_for(backend.cancelled)
    assert backend.running == 0


@pytest.mark.parametrize("size", [1, 200_000])
@pytest.mark.parametrize("requests", [1, 2])
async def test_a_client_that_leaves_is_noticed_whatever_it_has_sent(size, requests):
    backend = ScriptedBackend("Par", asyncio.Event())
    async with serving(backend) as http:
        asked = {"model": "toy", "prompt": "x" * size, "stream": True}
        body = json.dumps(asked).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: %d\r\n\r\n" % len(body)
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        # The second one has to wait for the first one's answer.
        writer.write((head + body) * requests)
        async with asyncio.timeout(WAIT_S):
            await reader.readuntil(b"Par")
        writer.close()
        await wait_for(backend.cancelled)
    assert backend.running == 0
    assert len(backend.requests) == 1


async def test_a_client_that_leaves_cancels_all_its_prompts():
    backend = ScriptedBackend("a", asyncio.Event())
    async with serving(backend) as http:
        body = {"model": "toy", "prompt": ["x", "y", "z"], "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_lines())
        await wait_for(backend.cancelled)
    assert backend.running == 0


async def test_a_stop_lets_streams_finish():
    gate = asyncio.Event()
    backend = ScriptedBackend("Par", gate, "is")
    server = HttpServer(create_app(backend, GatewayConfig()), host="127.0.0.1", port=0)
    url = await server.start()
    async with (
        httpx2.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as http,
        asyncio.TaskGroup() as group,
    ):
        body = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert server.in_flight == 1
            stopping = group.create_task(server.stop(WAIT_S))
            gate.set()
            rest = [line async for line in lines]
        await stopping
    assert rest[-2] == "data: [DONE]" or "data: [DONE]" in rest
    assert server.in_flight == 0
    assert backend.running == 0


async def test_a_stop_past_its_limit_ends_streams_with_an_error_event():
    backend = ScriptedBackend("Par", asyncio.Event())
    server = HttpServer(create_app(backend, GatewayConfig()), host="127.0.0.1", port=0)
    url = await server.start()
    async with (
        httpx2.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as http,
        asyncio.TaskGroup() as group,
    ):
        body = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            stopping = group.create_task(server.stop(0.05))
            rest = "\n".join([line async for line in lines])
        await stopping
    assert '"code":"draining"' in rest
    assert rest.rstrip().endswith("data: [DONE]")
    assert backend.running == 0
    assert server.in_flight == 0


async def test_a_taken_port_is_a_configuration_error():
    async with serving(ScriptedBackend()) as http:
        app = create_app(ScriptedBackend(), GatewayConfig())
        second = HttpServer(app, host="127.0.0.1", port=http.base_url.port or 0)
        with pytest.raises(InvalidConfig, match="cannot listen"):
            await second.start()


async def test_headers_without_end_are_refused():
    async with serving(ScriptedBackend()) as http, asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_large_headers_and_bodies_of_one_connection_do_not_add_up():
    async with serving(ScriptedBackend()) as http:
        for _ in range(4):
            body = {**CHAT, "user": "u" * 100_000}
            answer = await http.post(
                "/v1/chat/completions", json=body, headers={"x-large": "a" * 30_000}
            )
            assert answer.status_code == 200
