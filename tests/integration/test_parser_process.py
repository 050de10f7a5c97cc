"""The process of vLLM's parsers, played by a script: answers, refusals, death and silence."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.errors import EngineFailed, ServingError
from server.parsers.remote import ParserHost, RemoteParser
from tests.answer_samples import TOOLS
from tests.waiting import eventually
from wire.generate import ChoiceDelta, GenerateRequest
from wire.sampling import Sampling

# Shouts what it gets; does what it is told by some words.
SCRIPT = """
import os, sys, time
from wire.generate import ToolCallDelta
from wire.parser_messages import Feed, Parsed, decode_asked, framed
source, target = sys.stdin.buffer, sys.stdout.buffer
while head := source.read(4):
    asked = decode_asked(source.read(int.from_bytes(head, "little")))
    if not isinstance(asked, Feed):
        continue
    answer = Parsed(number=asked.number, content=asked.text.upper())
    if asked.text == "die":
        os._exit(1)
    if asked.text == "silence":
        continue
    if asked.text == "refuse":
        answer = Parsed(number=asked.number, error="it will not")
    if asked.text == "call":
        call = ToolCallDelta(index=0, id="c", name="f", arguments="{}")
        answer = Parsed(number=asked.number, reasoning="hm", tool_calls=[call], reasons=True)
    target.write(framed(answer))
    target.flush()
"""
COMMAND = (sys.executable, "-c", SCRIPT)


@pytest.fixture
async def host() -> AsyncIterator[ParserHost]:
    made = ParserHost(COMMAND, limit_s=20)
    yield made
    await made.close()


class Reader:
    """Collects what one choice becomes."""

    def __init__(self, host: ParserHost) -> None:
        self.found: list[ChoiceDelta] = []
        self.error: ServingError | None = None
        request = GenerateRequest(
            request_id="r", model="m", sampling=Sampling(), messages=[{}], tools=TOOLS
        )
        self.parser: RemoteParser = host.open(request, "folder", ("vllm:x", ""), [1, 2])

    def feed(self, text: str, **fields: Any) -> None:
        delta = ChoiceDelta(text=text, token_ids=[1, 2], **fields)
        self.parser.feed(delta, self.found.append, self._fail)

    def _fail(self, error: ServingError) -> None:
        assert self.error is None
        self.error = error

    async def ended(self) -> None:
        await eventually(
            lambda: (
                self.error is not None or any(it.finish_reason is not None for it in self.found)
            ),
            limit_s=20,
        )


async def test_pieces_of_many_choices_are_answered_in_order(host: ParserHost) -> None:
    readers = [Reader(host) for _ in range(5)]
    for piece in ("a", "b", ""):
        for number, reader in enumerate(readers):
            finish = None if piece else "stop"
            reader.feed(f"{piece}{number}" if piece else "", finish_reason=finish)
    for number, reader in enumerate(readers):
        await reader.ended()
        assert [it.text for it in reader.found] == [f"A{number}", f"B{number}", ""]
        assert reader.found[-1].finish_reason == "stop"


async def test_a_choice_that_called_ends_with_tool_calls(host: ParserHost) -> None:
    reader = Reader(host)
    reader.feed("call")
    reader.feed("", finish_reason="stop")
    await reader.ended()
    assert reader.found[0].tool_calls[0].name == "f"
    assert reader.found[0].reasoning == "hm"
    assert reader.found[-1].finish_reason == "tool_calls"
    assert reader.parser.reasoning_tokens == 2


async def test_a_refusal_fails_the_choice_and_no_other(host: ParserHost) -> None:
    refused, other = Reader(host), Reader(host)
    refused.feed("refuse")
    refused.feed("more")
    other.feed("x", finish_reason="stop")
    await other.ended()
    await refused.ended()
    assert isinstance(refused.error, EngineFailed)
    assert refused.error.message == "the parser vllm:x failed: it will not"
    assert refused.found == []


async def test_a_process_that_dies_fails_what_runs_and_the_next_choice_has_a_new_one(
    host: ParserHost,
) -> None:
    reader, other = Reader(host), Reader(host)
    other.feed("silence")
    reader.feed("die")
    for it in (reader, other):
        await it.ended()
        assert it.error is not None
        assert "it ended" in it.error.message
    again = Reader(host)
    again.feed("x", finish_reason="length")
    await again.ended()
    assert [it.text for it in again.found] == ["X"]


async def test_silence_has_a_limit() -> None:
    host = ParserHost(COMMAND, limit_s=0.5)
    try:
        reader = Reader(host)
        reader.feed("silence")
        await reader.ended()
        assert reader.error is not None
        assert "does not answer" in reader.error.message
    finally:
        await host.close()


async def test_a_process_that_cannot_start_is_an_error() -> None:
    host = ParserHost(("/nonexistent",), limit_s=20)
    reader = Reader(host)
    reader.feed("x")
    await reader.ended()
    assert isinstance(reader.error, EngineFailed)


async def test_a_closed_choice_hears_nothing_more(host: ParserHost) -> None:
    gone, other = Reader(host), Reader(host)
    gone.feed("x")
    gone.parser.close()
    other.feed("y", finish_reason="stop")
    await other.ended()
    assert gone.found == []
    assert gone.error is None


async def test_closing_ends_the_process(host: ParserHost) -> None:
    reader = Reader(host)
    reader.feed("x", finish_reason="stop")
    await reader.ended()
    process = host._process
    assert process is not None
    await host.close()
    async with asyncio.timeout(5):
        await process.wait()
