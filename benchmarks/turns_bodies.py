"""The longest turns of a front door's loop for long HTTP bodies of every kind.

As `turns`; each kind of body has its own fleet. The ids are those of a text, half of it words.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.processes import MODEL, Process, fleet, gateway_before
from benchmarks.turns import COLUMNS, WORKER, columns, turns_file
from server.text.tokenizer import Tokenizer, load_tokenizer
from worker.models import resolve_model

_WORDS = ("one", "two", "tree", "house", "green", "walk", "lamp")
_OTHERS = "\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17\u6211\u4eec\u53bb\u516c\u56ed"
_LIMIT_S = 120.0
_Body = tuple[str, dict[str, Any]]


class Bodies:
    """Bodies of about `size` tokens, no two of them alike; each method is one kind."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._random = random.Random(8)

    def ids(self) -> _Body:
        """A flat list."""
        return "/v1/completions", {"prompt": self._ids()}

    def ids_nested(self) -> _Body:
        """Four prompts."""
        return "/v1/completions", {"prompt": [self._ids(4) for _ in range(4)]}

    def ids_refused(self) -> _Body:
        """The last one is none."""
        return "/v1/completions", {"prompt": [*self._ids(), -1]}

    def ids_echoed(self) -> _Body:
        """Their text comes back."""
        return "/v1/completions", {"prompt": self._ids(), "echo": True}

    def route(self) -> _Body:
        """A dry run."""
        return "/v1/route", {"prompt": self._ids()}

    def embeddings(self) -> _Body:
        """To a model that only generates: it is read, and refused."""
        return "/v1/embeddings", {"input": self._ids()}

    def detokenize(self) -> _Body:
        """Ids to text."""
        return "/detokenize", {"tokens": self._ids()}

    def tokenize(self) -> _Body:
        """Text to ids."""
        return "/tokenize", {"prompt": self._text()}

    def kserve_infer(self) -> _Body:
        """A tensor in JSON."""
        ids = self._ids()
        tensor = {"name": "input_ids", "datatype": "INT32", "shape": [len(ids)], "data": ids}
        return f"/v2/models/{MODEL}/infer", {"inputs": [tensor], "parameters": {"max_tokens": 1}}

    def kserve_generate(self) -> _Body:
        """The same by name."""
        return f"/v2/models/{MODEL}/generate", {"input_ids": self._ids()}

    def texts(self) -> _Body:
        """A hundred prompts."""
        return "/v1/completions", {"prompt": [self._text(100) for _ in range(100)]}

    def texts_short(self) -> _Body:
        """One for each token: too many, and refused."""
        return "/v1/completions", {"prompt": self._text().split()}

    def chat(self) -> _Body:
        """A thousand messages."""
        return "/v1/chat/completions", {"messages": self._messages(1001)}

    def chat_short(self) -> _Body:
        """Eight thousand messages."""
        return "/v1/chat/completions", {"messages": self._messages(8001)}

    def chat_tools(self) -> _Body:
        """A short one, with a thousand tools."""
        tools = []
        for number in range(1000):
            text = self._text(4000)
            value = {"type": "string", "description": text}
            parameters = {"type": "object", "properties": {"first": value, "second": value}}
            function = {"name": f"f{number}", "description": text, "parameters": parameters}
            tools.append({"type": "function", "function": function})
        return self._with_tools(tools)

    def chat_tool(self) -> _Body:
        """One tool with eight thousand properties."""
        text = {"type": "string", "description": self._text(16_000)}
        parameters = {"type": "object", "properties": {f"p{it}": text for it in range(8000)}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        return self._with_tools(tools)

    def chat_parts(self) -> _Body:
        """One message of eight thousand parts."""
        return "/v1/chat/completions", {"messages": self._parts("text")}

    def kserve_chat(self) -> _Body:
        """Eight thousand messages by KServe's name."""
        text = msgspec.json.encode(self._messages(8001)).decode()
        return f"/v2/models/{MODEL}/generate", {"messages": text}

    def tokenize_chat(self) -> _Body:
        """The tokens of eight thousand messages."""
        return "/tokenize", {"messages": self._messages(8001)}

    def responses(self) -> _Body:
        """A thousand items."""
        return "/v1/responses", {"input": self._messages(1001), "max_output_tokens": 1}

    def responses_short(self) -> _Body:
        """Eight thousand."""
        return "/v1/responses", {"input": self._messages(8001), "max_output_tokens": 1}

    def responses_parts(self) -> _Body:
        """One of eight thousand parts."""
        return "/v1/responses", {"input": self._parts("input_text"), "max_output_tokens": 1}

    def messages(self) -> _Body:
        """The same in Anthropic's form."""
        return "/v1/messages", {"messages": self._messages(1001)}

    def messages_short(self) -> _Body:
        """Eight thousand."""
        return "/v1/messages", {"messages": self._messages(8001)}

    def messages_parts(self) -> _Body:
        """One of eight thousand parts."""
        return "/v1/messages", {"messages": self._parts("text")}

    def _text(self, parts: int = 1) -> str:
        return " ".join(self._random.choice(_WORDS) for _ in range(self._size // parts))

    def _ids(self, parts: int = 1) -> list[int]:
        others = "".join(self._random.choice(_OTHERS) for _ in range(self._size // parts))
        text = self._text(2 * parts) + others
        return self._tokenizer.encode(text, add_special_tokens=False)[: self._size // parts]

    def _messages(self, count: int) -> list[dict[str, str]]:
        roles = itertools.cycle(("user", "assistant"))
        texts = (self._text(count) for _ in range(count))
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    def _with_tools(self, tools: list[dict[str, Any]]) -> _Body:
        messages = self._messages(1001)[:1]
        return "/v1/chat/completions", {"messages": messages, "tools": tools, "tool_choice": "none"}

    def _parts(self, kind: str) -> list[dict[str, Any]]:
        parts = [{"type": kind, "text": self._text(8000)} for _ in range(8000)]
        return [{"role": "user", "content": parts}]


KINDS = [name for name in vars(Bodies) if not name.startswith("_")]


def make_bodies(options: argparse.Namespace) -> Bodies:
    """Return bodies as long as the options say."""
    model = resolve_model("smollm2", progress=lambda _: None)
    return Bodies(load_tokenizer(model.path), options.tokens)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how long requests are, and how many."""
    parser.add_argument("--tokens", type=int, default=131_000, help="of a request, about")
    parser.add_argument("--requests", type=int, default=20, help="of each kind")
    parser.add_argument("--streams", type=int, default=1, help="requests at a time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of: {', '.join(KINDS)}")
    add_load_arguments(parser)
    parser.add_argument("--gateway", action="store_true", help="of a gateway before the front door")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    if unknown := set(options.kinds) - set(KINDS):
        raise SystemExit(f"no kind of body: {', '.join(sorted(unknown))}")
    bodies = make_bodies(options)
    table = Table("body", *COLUMNS, "answers")
    with turns_file() as file:
        for kind in options.kinds or KINDS:
            made = [_encoded(getattr(bodies, kind)) for _ in range(options.requests)]
            with _measured(gateway=options.gateway) as process:
                began_s = time.monotonic()
                answers = asyncio.run(_send(process.ready["http"], made, options.streams))
                turns = columns(file, began_s)
            shown = ", ".join(f"{count} x {status}" for status, count in answers.items())
            table.add_row(kind, *turns, shown)
    Console().print(table)
    return 0


@contextmanager
def _measured(*, gateway: bool) -> Iterator[Process]:
    module = "benchmarks.turns_front"
    if not gateway:
        with fleet(worker=WORKER, front_module=module) as (front, _):
            yield front
        return
    with fleet(worker=WORKER) as (front, _), gateway_before(front, module) as before:
        yield before


def _encoded(make: Callable[[], _Body]) -> tuple[str, bytes]:
    path, body = make()
    return path, msgspec.json.encode({"model": MODEL, "max_tokens": 1} | body)


async def _send(address: str, bodies: list[tuple[str, bytes]], streams: int) -> Counter[int]:
    """Send all, so many at a time; returns how often each status came."""
    statuses: Counter[int] = Counter()
    left: Iterator[tuple[str, bytes]] = iter(bodies)
    headers = {"content-type": "application/json"}

    async def one_by_one(http: httpx2.AsyncClient) -> None:
        for path, body in left:
            statuses[(await http.post(path, content=body, headers=headers)).status_code] += 1

    async with httpx2.AsyncClient(base_url=address, timeout=_LIMIT_S) as http:
        await asyncio.gather(*(one_by_one(http) for _ in range(streams)))
    return statuses
