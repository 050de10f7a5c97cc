"""Our parsers of answers against vLLM's own, on the same answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.parsers.families import REASONING_FAMILIES, TOOL_FAMILIES
from server.parsers.thinking import ThinkingMachine
from tests.answer_samples import CALLS, THOUGHTS, TOOLS

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
