"""What browsers, proxies and operators meet: CORS, comments, paths, unknown names."""

import asyncio
from typing import Any

import openai
import pytest

from gateway_http.config import GatewayConfig
from runtime.access import Access
from runtime.errors import EngineFailed, InvalidConfig, WorkerLost
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import openai_for, serving, wait_for

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
ORIGIN = "https://chat.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
BEAT = b": keep-alive\n\n"


class Closed(Access):
    """Knows no key at all."""

    def principal(self, metadata: Any) -> str:
        raise AssertionError("nobody must be asked for a key")


async def test_a_silent_stream_sends_comments_that_clients_skip() -> None:
    go_on = asyncio.Event()
    backend = ScriptedBackend("Par", go_on, "is")
    async with serving(backend, GatewayConfig(keep_alive_s=0.02)) as http:
        asked = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            seen = b""
            async for part in answer.aiter_raw():
                seen += part
                if seen.count(BEAT) == 2:
                    go_on.set()
        assert seen.endswith(b"data: [DONE]\n\n")
        go_on.clear()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        async with openai_for(http) as client:
            chunks = await client.chat.completions.create(**asked)
            text = "".join([it.choices[0].delta.content or "" async for it in chunks])
        assert text == "Paris"


async def test_a_stream_without_a_first_token_begins_after_a_silence_and_can_still_fail() -> None:
    fail = asyncio.Event()
    backend = ScriptedBackend(fail, WorkerLost("gone"))
    async with serving(backend, GatewayConfig(keep_alive_s=0.02)) as http:
        asked = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            assert answer.status_code == 200
            seen = b""
            async for part in answer.aiter_raw():
                seen += part
                fail.set()
        error, done = seen.replace(BEAT, b"").split(b"\n\n", 1)
        assert b'"worker_lost"' in error
        assert done == b"data: [DONE]\n\n"


async def test_without_comments_a_stream_that_fails_at_once_has_the_errors_status() -> None:
    async with serving(ScriptedBackend(WorkerLost("gone")), GatewayConfig(keep_alive_s=0)) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert answer.status_code == 503


async def test_an_error_within_a_stream_is_raised_by_openais_client() -> None:
    backend = ScriptedBackend("Par", EngineFailed("the engine broke"))
    async with serving(backend) as http, openai_for(http) as client:
        chunks = await client.chat.completions.create(**CHAT, stream=True)
        first = [await anext(chunks), await anext(chunks)]
        assert first[1].choices[0].delta.content == "Par"
        with pytest.raises(openai.APIError, match="the engine broke"):
            await anext(chunks)


async def test_a_page_of_an_allowed_origin_may_ask() -> None:
    config = GatewayConfig(cors_origins=(ORIGIN,))
    async with serving(ScriptedBackend(), config) as http:
        for fields in ({}, {"stream": True}):
            headers = {"origin": ORIGIN}
            answer = await http.post("/v1/chat/completions", json=CHAT | fields, headers=headers)
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["vary"] == "Origin"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = await http.post("/v1/chat/completions", json={}, headers={"origin": ORIGIN})
        assert refused.status_code == 400
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        other = await http.get("/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_browsers_question_needs_no_key() -> None:
    config = GatewayConfig(cors_origins=(ORIGIN,))
    async with serving(ScriptedBackend(), config, access=Closed()) as http:
        answer = await http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in answer.headers["access-control-allow-headers"]
        other = {**PREFLIGHT, "origin": "https://evil.example"}
        refused = await http.options("/v1/chat/completions", headers=other)
        assert refused.status_code == 400


async def test_any_origin_may_ask_when_all_are_allowed_and_none_by_default() -> None:
    async with serving(ScriptedBackend(), GatewayConfig(cors_origins=("*",))) as http:
        answer = await http.get("/v1/models", headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == "*"
    async with serving(ScriptedBackend()) as http:
        answer = await http.get("/v1/models", headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers
        assert (await http.options("/v1/models", headers=PREFLIGHT)).status_code == 405


async def test_further_paths_lead_to_the_same_endpoint() -> None:
    config = GatewayConfig(paths={"/api/chat": "/v1/chat/completions", "/healthz": "/health"})
    async with serving(ScriptedBackend(), config) as http:
        for path in ("/api/chat", "/v1/chat/completions"):
            answer = await http.post(path, json=CHAT)
            assert answer.json()["choices"][0]["message"]["content"]
        assert (await http.get("/healthz")).json() == {"status": "ready"}
    with pytest.raises(InvalidConfig, match="does not begin with /"):
        GatewayConfig(paths={"chat": "/v1/chat/completions"})


async def test_unknown_names_are_ignored_or_refused() -> None:
    body = {**CHAT, "surprise": 1}
    async with serving(ScriptedBackend()) as http:
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    async with serving(ScriptedBackend(), GatewayConfig(refuse_unknown_fields=True)) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "surprise"


@pytest.mark.parametrize("path", ["images/generations", "audio/speech", "moderations"])
async def test_kinds_of_models_that_are_not_served_are_told_so(path: str) -> None:
    async with serving(ScriptedBackend()) as http:
        known = await http.post(f"/v1/{path}", json={"model": "toy", "prompt": "x"})
        assert known.status_code == 400
        assert known.json()["error"]["param"] == "model"
        unknown = await http.post(f"/v1/{path}", json={"model": "dall-e-3"})
        assert unknown.status_code == 404
        assert "dall-e-3" in unknown.json()["error"]["message"]


async def test_an_upload_for_such_a_model_is_refused_too() -> None:
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        with pytest.raises(openai.NotFoundError):
            await client.images.edit(image=b"x", prompt="x", model="dall-e-2")


async def test_a_client_that_leaves_a_silent_stream_frees_the_backend() -> None:
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend, GatewayConfig(keep_alive_s=0.01)) as http:
        asked = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            async for _ in answer.aiter_raw():
                break
        await wait_for(backend.cancelled)
