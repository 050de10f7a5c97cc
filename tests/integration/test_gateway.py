"""The HTTP front over real sockets, with the clients that people use."""

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest

from gateway_http.config import GatewayConfig
from runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    WorkerLost,
)
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import WAIT_S, openai_for, serving, wait_for

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "toy", "prompt": "Hi"}
DEEP = json.loads("[" * 400 + "]" * 400)


def events(text: str) -> list[dict]:
    """The JSON of each event; the end mark is checked and left out."""
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


async def test_a_streamed_chat_is_read_by_the_async_openai_client():
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        stream = await client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Paris é\n"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == 5
    assert chunks[-1].usage.total_tokens == 8
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_whole_chat_is_read_by_the_async_openai_client():
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        answer = await client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == "Paris é\n"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 3
    assert answer.model == "toy"
    assert answer.id.startswith("chatcmpl-")


async def test_the_synchronous_openai_client_streams_too():
    def ask(url: str) -> str:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client:
            stream = client.completions.create(**TEXT, stream=True)
            return "".join(chunk.choices[0].text for chunk in stream)

    async with serving(ScriptedBackend()) as http:
        text = await asyncio.to_thread(ask, str(http.base_url.join("v1")))
    assert text == "Paris é\n"


async def test_whole_and_streamed_completions_have_the_same_text():
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        whole = await client.completions.create(**TEXT, n=2)
        stream = await client.completions.create(**TEXT, n=2, stream=True)
        parts = [chunk.choices[0] async for chunk in stream]
    for index in (0, 1):
        joined = "".join(part.text for part in parts if part.index == index)
        assert joined == whole.choices[index].text == "Paris é\n"
    assert whole.object == "text_completion"


async def test_chat_log_probabilities_have_openai_shape_in_both_ways():
    options = {**CHAT, "logprobs": True, "top_logprobs": 2}
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        whole = await client.chat.completions.create(**options)
        stream = await client.chat.completions.create(**options, stream=True)
        streamed = [
            entry
            async for chunk in stream
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content
        ]
    content = whole.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["Par", "is", " é\n"]
    assert content[2].bytes == [32, 195, 169, 10]
    assert [other.token for other in content[0].top_logprobs] == ["Par", "~"]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]


async def test_completion_log_probabilities_have_openai_shape_in_both_ways():
    options = {**TEXT, "logprobs": 2}
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        whole = (await client.completions.create(**options)).choices[0].logprobs
        stream = await client.completions.create(**options, stream=True)
        parts = [chunk.choices[0].logprobs async for chunk in stream]
    assert whole.tokens == ["Par", "is", " é\n"]
    assert whole.text_offset == [0, 3, 5]
    assert whole.token_logprobs == [-0.25] * 3
    assert whole.top_logprobs[1] == {"is": -0.25, "~": -2.5}
    assert [offset for part in parts if part for offset in part.text_offset] == [0, 3, 5]


async def test_each_prompt_of_a_list_gets_its_own_indexes():
    backend = ScriptedBackend("a", "b")
    async with serving(backend) as http, openai_for(http) as client:
        body = {"model": "toy", "prompt": ["x", "y", "z"], "n": 2}
        whole = await client.completions.create(**body)
        stream = await client.completions.create(**body, stream=True)
        seen = {chunk.choices[0].index async for chunk in stream}
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3, 4, 5]
    assert seen == {0, 1, 2, 3, 4, 5}
    assert whole.usage.prompt_tokens == 15
    assert len({request.request_id for request in backend.requests}) == 6
    assert {request.prompt for request in backend.requests} == {"x", "y", "z"}


async def test_token_prompts_reach_the_backend_as_tokens():
    backend = ScriptedBackend()
    async with serving(backend) as http:
        for prompt in ([1, 2, 3], [[4, 5], [6]]):
            await http.post("/v1/completions", json={"model": "toy", "prompt": prompt})
    assert [list(request.prompt_token_ids or ()) for request in backend.requests] == [
        [1, 2, 3],
        [4, 5],
        [6],
    ]


async def test_long_token_prompts_do_too_or_are_refused_by_name():
    backend = ScriptedBackend()
    ids = list(range(40_000))
    async with serving(backend) as http:
        body = {"model": "toy", "prompt": ids, "max_tokens": 3}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        refused = [
            await http.post("/v1/completions", json=it)
            for it in ({**body, "prompt": [*ids, -1]}, {**body, "max_tokens": "x"})
        ]
    (request,) = backend.requests
    assert list(request.prompt_token_ids or ()) == ids
    assert request.sampling.max_tokens == 3
    assert [answer.status_code for answer in refused] == [400, 400]
    assert [answer.json()["error"]["param"] for answer in refused] == [
        "prompt[40000]",
        "max_tokens",
    ]


async def test_continuous_usage_counts_up_on_every_chunk():
    body = {**CHAT, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    async with serving(ScriptedBackend()) as http:
        chunks = events((await http.post("/v1/chat/completions", json=body)).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 3, 3, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {5}


async def test_models_and_their_aliases_are_listed_and_found():
    async with serving(ScriptedBackend()) as http, openai_for(http) as client:
        names = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("toy-alias")
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("org/other")
    assert names == ["toy", "toy-alias"]
    assert one.created == 1_700_000_000
    assert refused.value.code == "model_not_found"


async def test_status_pages_follow_the_backend():
    backend = ScriptedBackend()
    async with serving(backend) as http:
        assert [(await http.get(path)).status_code for path in ("/live", "/ready", "/health")] == [
            200
        ] * 3
        backend.ready = False
        assert [(await http.get(path)).status_code for path in ("/live", "/ready", "/health")] == [
            200,
            503,
            503,
        ]


async def test_metrics_count_requests_by_endpoint_and_status():
    async with serving(ScriptedBackend()) as http:
        await http.post("/v1/completions", json=TEXT)
        text = (await http.get("/metrics")).text
    assert 'penstock_http_requests_total{endpoint="/v1/completions",status="200"}' in text
    assert "penstock_http_request_duration_seconds_count" in text


async def test_the_document_describes_bodies_and_errors():
    async with serving(ScriptedBackend()) as http:
        document = (await http.get("/openapi.json")).json()
        assert (await http.get("/docs")).status_code == 200
    operation = document["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert {"messages", "model"} <= set(schema["required"])
    assert {"400", "404", "413", "429", "503", "504"} <= set(operation["responses"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "raised"),
    [
        (ModelNotFound("no such model", param="model"), 404, openai.NotFoundError),
        (ContextLengthExceeded("too long"), 400, openai.BadRequestError),
        (Overloaded("busy"), 429, openai.RateLimitError),
        (ModelNotReady("starting"), 503, openai.InternalServerError),
        (DeadlineExceeded("late"), 504, openai.InternalServerError),
        (EngineFailed("broken"), 500, openai.InternalServerError),
        (Cancelled("gone"), 499, openai.APIStatusError),
    ],
)
async def test_an_error_before_the_first_token_has_its_own_status(error, status, raised, stream):
    async with serving(ScriptedBackend(error)) as http, openai_for(http) as client:
        with pytest.raises(raised) as refused:
            await client.chat.completions.create(**CHAT, stream=stream)
    assert refused.value.status_code == status
    assert refused.value.code == type(error).reason
    assert refused.value.type == type(error).openai_type
    assert error.message in refused.value.message
    assert ("retry-after" in refused.value.response.headers) == (status in (429, 503))


async def test_an_error_after_the_first_token_is_an_event_before_the_end():
    async with serving(ScriptedBackend("Par", WorkerLost("worker lost"))) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        async with openai_for(http) as client:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            with pytest.raises(openai.APIError, match="worker lost"):
                _ = [chunk async for chunk in stream]
    assert answer.status_code == 200
    assert answer.text.endswith("}}\n\ndata: [DONE]\n\n")
    last = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["error"]["code"] == "worker_lost"


async def test_one_failing_prompt_ends_the_others():
    gate = asyncio.Event()
    backend = ScriptedBackend(gate, EngineFailed("broken"))
    async with serving(backend) as http:
        body = {"model": "toy", "prompt": ["a", "b"]}
        gate.set()
        answer = await http.post("/v1/completions", json=body)
        await wait_for(backend.cancelled)
    assert answer.status_code == 500
    assert backend.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unexpected_exception_is_answered_with_a_fixed_text(stream, caplog):
    async with serving(ScriptedBackend(KeyError("secret detail"))) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
    assert answer.json()["error"]["code"] == "internal"


@pytest.mark.parametrize(
    ("send", "status", "code", "param"),
    [
        ({"content": b"{"}, 400, "invalid_request", None),
        ({"content": b"\xff\xfe"}, 400, "invalid_request", None),
        ({"content": b'{"a":' + b"[" * 4000}, 400, "invalid_request", None),
        ({"json": {**CHAT, "messages": [{"x": DEEP}]}}, 400, "invalid_request", "messages"),
        ({"json": {"model": "toy"}}, 400, "invalid_request", "messages"),
        ({"json": {**CHAT, "max_tokens": "16"}}, 400, "invalid_request", "max_tokens"),
        ({"json": {**CHAT, "temperature": 9}}, 400, "invalid_request", "temperature"),
        ({"json": {**CHAT, "audio": {"voice": "x"}}}, 400, "unsupported_value", "audio"),
        ({"content": b"x" * 5000}, 413, "request_too_large", None),
    ],
)
async def test_bad_bodies_are_refused_and_the_next_request_works(send, status, code, param):
    headers = {"content-type": "application/json"}
    async with serving(ScriptedBackend(), GatewayConfig(max_body_bytes=4096)) as http:
        answer = await http.post("/v1/chat/completions", headers=headers, **send)
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


async def test_a_body_of_unknown_length_is_limited_too():
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    async with serving(ScriptedBackend(), GatewayConfig(max_body_bytes=4096)) as http:
        answer = await http.post("/v1/chat/completions", content=parts(), headers=headers)
    assert answer.status_code == 413


async def test_routing_refusals_have_the_same_shape():
    async with serving(ScriptedBackend()) as http:
        unknown = await http.get("/v3/nothing")
        method = await http.get("/v1/completions")
        kind = await http.post("/v1/completions", data={"a": "b"})
    assert [(a.status_code, a.json()["error"]["code"]) for a in (unknown, method, kind)] == [
        (404, "unknown_url"),
        (405, "method_not_allowed"),
        (415, "unsupported_media_type"),
    ]
    assert method.headers["allow"] == "POST"


async def test_request_ids_are_taken_over_or_made():
    async with serving(ScriptedBackend(), GatewayConfig(headers={"X-Served-By": "here"})) as http:
        for path, body in (
            ("/v1/completions", TEXT),
            ("/v1/completions", {**TEXT, "stream": True}),
        ):
            given = await http.post(path, json=body, headers={"x-request-id": "abc-1"})
            assert given.headers.get_list("x-request-id") == ["abc-1"]
            assert given.headers["x-served-by"] == "here"
        odd = await http.get("/v1/models", headers={"x-request-id": 'a b"<'})
        missing = await http.get("/nothing")
    assert odd.headers["x-request-id"].isalnum()
    assert missing.headers["x-request-id"].isalnum()


async def test_streams_are_marked_as_uncacheable_and_unbuffered():
    async with serving(ScriptedBackend()) as http:
        answer = await http.post("/v1/completions", json={**TEXT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
