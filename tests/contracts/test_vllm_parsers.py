"""Our parsers of answers against vLLM's own, on the same answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ServingError
from server.parsers.families import REASONING_FAMILIES, TOOL_FAMILIES
from server.parsers.remote import ParserHost
from server.parsers.thinking import ThinkingMachine
from tests.answer_samples import CALLS, PARIS, THOUGHTS, TOOLS
from tests.waiting import eventually
from wire.generate import ChoiceDelta, GenerateRequest
from wire.sampling import Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

HOST = Path(__file__).with_name("vllm_parser_host.py")
TOKENS = sorted(
    {token for family in TOOL_FAMILIES.values() for token in family.tokens}
    | {mark for it in REASONING_FAMILIES.values() if it.tokens for mark in (*it.begins, *it.ends)}
    | {
        "<tool_call>",
        "</tool_call>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    }
)
OURS = {
    # vLLM's engine drops blanks between text and a call, its older parsers do not; we never do.
    ("qwen3_coder", 3): "I will look.\n",
}
"""Family and place of a sample to the content that we find in it instead."""


@pytest.fixture(scope="module")
def vllm(model_folder: Path) -> Any:
    asked = {
        "model": str(model_folder), "tokens": TOKENS, "calls": CALLS, "thoughts": THOUGHTS,
        "tools": TOOLS,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(HOST)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_those_that_vllm_finds(vllm: Any, name: str) -> None:
    for place, (text, (content, calls)) in enumerate(
        zip(CALLS[name], vllm["calls"][name], strict=True)
    ):
        parser = TOOL_FAMILIES[name].make(TOOLS)
        (first_text, first), (last_text, last) = parser.feed(text), parser.finish()
        found: list[list[str]] = []
        for delta in first + last:
            if delta.name is not None:
                found.append([delta.name, ""])
            found[delta.index][1] += delta.arguments
        assert first_text + last_text == OURS.get((name, place), content)
        assert [(it, json.loads(arguments)) for it, arguments in found] == [
            (it, json.loads(arguments)) for it, arguments in calls
        ]


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_are_those_that_vllm_finds(vllm: Any, name: str) -> None:
    for text, (thoughts, content) in zip(THOUGHTS[name], vllm["thoughts"][name], strict=True):
        machine = ThinkingMachine(REASONING_FAMILIES[name], starts_inside=False)
        first, last = machine.feed(text), machine.finish()
        assert (first[0] + last[0], first[1] + last[1]) == (thoughts, content)


async def test_parsers_by_name_answer_from_their_process(model_folder: Path) -> None:
    host = ParserHost()
    request = GenerateRequest(
        request_id="r", model="m", sampling=Sampling(), messages=[{}], tools=TOOLS
    )
    errors: list[ServingError] = []

    def begin(names: tuple[str, str], *pieces: str) -> list[ChoiceDelta]:
        found: list[ChoiceDelta] = []
        parser = host.open(request, str(model_folder), names, [1, 2, 3])
        for number, piece in enumerate((*pieces, "")):
            finish = "stop" if number == len(pieces) else None
            delta = ChoiceDelta(text=piece, token_ids=[number], finish_reason=finish)
            parser.feed(delta, found.append, errors.append)
        return found

    try:
        called = begin(("vllm:hermes", ""), "So.", "<tool_call>", PARIS, "</tool_call>")
        thoughts, said = "Here is my thought process:", "Here is my response:"
        thought = begin(("", "vllm:granite"), thoughts, " I think.", f" {said}", " So.")
        begin(("vllm:no_such_parser", ""), "x")
        await eventually(
            lambda: bool(errors) and all(it and it[-1].finish_reason for it in (called, thought)),
            limit_s=120,
        )
    finally:
        await host.close()
    assert "".join(it.text for it in called) == "So."
    calls = [call for it in called for call in it.tool_calls]
    assert calls[0].name == "get_weather"
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Paris"}
    assert called[-1].finish_reason == "tool_calls"
    assert "".join(it.reasoning for it in thought).strip() == "I think."
    assert "".join(it.text for it in thought).strip() == "So."
    assert errors[0].message.startswith("the parser vllm:no_such_parser failed: ")
