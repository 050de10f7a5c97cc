"""Visits over HTTP: chat and completions, streamed and whole, clients that leave, bad bodies."""

import asyncio
import json
from collections.abc import Iterable
from random import Random
from typing import Any

import httpx2

from benchmarks.processes import MODEL
from benchmarks.soak.kserve_visits import MOST_TOKENS, prompt
from benchmarks.soak.ledger import LATE, LEFT, OK, Fault, Kind, Site
from runtime.errors import Overloaded

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Body = dict[str, Any]


def sampling(rng: Random) -> Body:
    """What both endpoints take."""
    body: Body = {"model": MODEL, "max_tokens": rng.randint(1, MOST_TOKENS), "seed": 7}
    if rng.random() < 0.3:
        body["stop"] = [rng.choice("aeiou") + rng.choice("lnrst")]
    if rng.random() < 0.2:
        body["priority"] = 3
    return body


def chat_body(rng: Random, **changes: Any) -> Body:
    """A conversation."""
    messages = [{"role": "user", "content": prompt(rng)}]
    return sampling(rng) | {"messages": messages} | changes


def prompts_body(rng: Random, **changes: Any) -> Body:
    """Several prompts, and at times several answers to each."""
    prompts = [prompt(rng) for _ in range(rng.randint(2, 5))]
    return sampling(rng) | {"prompt": prompts, "n": rng.randint(1, 2)} | changes


def choices_of(body: Body) -> int:
    """How many choices the answer must have."""
    return int(body.get("n", 1)) * (len(body["prompt"]) if "prompt" in body else 1)


def error_of(data: bytes) -> str:
    """The code of an error answer."""
    code: str = json.loads(data)["error"]["code"]
    return code


class Events:
    """The server-sent events of one answer; raises Fault for what must not come."""

    def __init__(self, choices: int) -> None:
        self.end = ""
        self._closed = False
        self._choices = choices
        self._finished: set[int] = set()

    def take(self, line: str) -> None:
        """Take one line."""
        if not line:
            return
        data = line.removeprefix("data: ")
        if self._closed or (self.end and data != "[DONE]"):
            raise Fault(f"the stream went on after its end ({self.end})")
        if data == "[DONE]":
            if not self.end and len(self._finished) != self._choices:
                raise Fault(f"{len(self._finished)} of {self._choices} choices were finished")
            self.end, self._closed = self.end or OK, True
            return
        event = json.loads(data)
        if "error" in event:
            self.end = event["error"]["code"]
            return
        for choice in event["choices"]:
            if choice["index"] in self._finished:
                raise Fault(f"choice {choice['index']} went on after its end")
            if choice["finish_reason"] is not None:
                self._finished.add(choice["index"])


async def post(
    site: Site, path: str, body: Body, headers: dict[str, str] | None = None
) -> list[str]:
    """Ask, and read the answer to its end, whichever form it has; every prompt is a request."""
    requests = len(body["prompt"]) if "prompt" in body else 1
    end = await _end_of(site.client, path, body, headers)
    return [end] * requests


async def _end_of(
    client: httpx2.AsyncClient, path: str, body: Body, headers: dict[str, str] | None
) -> str:
    async with client.stream("POST", path, json=body, headers=headers) as response:
        if response.status_code != 200:
            return error_of(await response.aread())
        if body.get("stream"):
            events = Events(choices_of(body))
            async for line in response.aiter_lines():
                events.take(line)
            if not events.end:
                raise Fault("the stream has no end")
            return events.end
        answer = json.loads(await response.aread())
        finished = [choice["finish_reason"] for choice in answer["choices"]]
        if len(finished) != choices_of(body) or None in finished:
            raise Fault(f"choices ended with {finished}")
        return OK


async def chat(site: Site, rng: Random) -> Iterable[str]:
    """A whole answer."""
    return await post(site, CHAT, chat_body(rng))


async def chat_stream(site: Site, rng: Random) -> Iterable[str]:
    """A streamed answer."""
    return await post(site, CHAT, chat_body(rng, stream=True))


async def prompts(site: Site, rng: Random) -> Iterable[str]:
    """Several prompts, streamed or not."""
    return await post(site, COMPLETIONS, prompts_body(rng, stream=rng.random() < 0.5))


async def hurried(site: Site, rng: Random) -> Iterable[str]:
    """A client that says how long it will wait."""
    headers = {"x-request-timeout": f"{rng.uniform(0.001, 1.0):.3f}"}
    if rng.random() < 0.5:
        return await post(site, CHAT, chat_body(rng, stream=rng.random() < 0.5), headers)
    return await post(site, COMPLETIONS, prompts_body(rng, stream=rng.random() < 0.5), headers)


async def leaving(site: Site, rng: Random) -> Iterable[str]:
    """A client that closes its connection in the middle of a stream, or while it waits."""
    body = chat_body(rng, stream=rng.random() < 0.7)
    lines = rng.randint(0, 20)
    try:
        async with (
            asyncio.timeout(rng.uniform(0.01, 1.0)),
            site.client.stream("POST", CHAT, json=body) as response,
        ):
            async for _ in response.aiter_lines():
                lines -= 1
                if lines <= 0:
                    break
    except TimeoutError:
        pass
    return [LEFT]


_SPOILED: tuple[tuple[bytes, str], ...] = (
    (b"{", "invalid_request"),
    (b"[]", "invalid_request"),
    (b'{"model": "sim"}', "invalid_request"),
    (b'{"model": "sim", "messages": [{"role": 7}]}', "invalid_request"),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', "model_not_found"),
    (
        b'{"model": "sim", "messages": [{"role": "user", "content": "%b"}]}' % (b"word " * 9000),
        "context_length_exceeded",
    ),
)


async def bad(site: Site, rng: Random) -> Iterable[str]:
    """A body that must be refused, or a path that there is not."""
    body, code = rng.choice(_SPOILED)
    response = await site.client.post(CHAT, content=body)
    if response.status_code < 400 or error_of(response.content) not in (code, Overloaded.reason):
        raise Fault(f"answered {response.status_code} {response.text[:80]}, not {code}")
    if rng.random() < 0.2:
        await site.client.get("/v1/nothing")
        await site.client.post(CHAT, content=b"x", headers={"content-type": "text/html"})
    return ["refused"]


KINDS = (
    Kind("chat", 12, chat),
    Kind("chat stream", 15, chat_stream),
    Kind("completions of several prompts", 8, prompts),
    Kind("x-request-timeout", 8, hurried, LATE),
    Kind("chat, client leaves", 10, leaving, frozenset({LEFT})),
    Kind("chat, bad body", 8, bad, frozenset({"refused"})),
)
