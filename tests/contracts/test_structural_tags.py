"""What our structural tags let a model write, by xgrammar; and that our parsers read all of it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.parsers.families import JSON_FORM, REASONING_FAMILIES, TOOL_FAMILIES
from server.parsers.structure import (
    behind_thoughts,
    calls_format,
    constraint_format,
    structural_tag,
)
from server.parsers.tools import read_tools
from tests.answer_samples import TIME, WEATHER, deepseek, deepseek31, hermes, xml_call

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

HOST = Path(__file__).with_name("structural_tag_host.py")
PARIS, WRONG = '{"city": "Paris", "days": 3}', '{"city": "Paris", "days": "three"}'
BARE = '{{"name": "{}", "parameters": {}}}'
NAMED = '{{"name": "{}", "arguments": {}}}'
STRICT = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
Call = tuple[str, str]


def _xml(*calls: Call) -> str:
    return "\n".join(xml_call(name, **json.loads(arguments)) for name, arguments in calls)


def _bare(*calls: Call) -> str:
    return "; ".join(BARE.format(*call) for call in calls)


WRITTEN = {
    JSON_FORM: _bare,
    "llama3_json": _bare,
    "llama4_json": _bare,
    "hermes": lambda *calls: hermes(*[NAMED.format(*call) for call in calls]),
    "qwen3_coder": _xml,
    "qwen3_xml": _xml,
    "mistral": lambda *c: f"[TOOL_CALLS][{', '.join(NAMED.format(*it) for it in c)}]",
    "deepseek_v3": deepseek,
    "deepseek_v31": deepseek31,
}
"""Family to how it writes calls: function and arguments of each."""
ONE: Sequence[Call] = [("get_weather", PARIS)]
TWO: Sequence[Call] = [("get_weather", PARIS), ("get_time", "{}")]


def _allowed(*asked: tuple[Any, list[str]]) -> list[list[bool]]:
    tags = [(structural_tag(wanted)["structural_tag"], texts) for wanted, texts in asked]
    done = subprocess.run(
        [sys.executable, str(HOST)],
        input=json.dumps(tags), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found: list[list[bool]] = json.loads(done.stdout)
    return found


def _calls(family: str, tools: list[Any], choice: Any, *, parallel: bool = True) -> Any:
    return calls_format(family, read_tools(tools, choice), parallel=parallel)


def _named(function: str) -> Any:
    return {"type": "function", "function": {"name": function}}


def test_calls_that_must_come_do_and_only_those() -> None:
    tools = [WEATHER, TIME]
    asked = []
    for family, write in WRITTEN.items():
        texts = [
            write(*ONE), write(*TWO), "I will look.", write(("get_rain", "{}")),
            write(("get_weather", WRONG)),
        ]  # fmt: skip
        asked += [
            (_calls(family, tools, "required"), texts),
            (_calls(family, tools, "required", parallel=False), texts),
            (_calls(family, tools, _named("get_time")), [write(("get_time", "{}")), write(*ONE)]),
        ]
    allowed = _allowed(*asked)
    for place, family in enumerate(WRITTEN):
        many, one, named = allowed[place * 3 : place * 3 + 3]
        assert many == [True, True, False, False, False], family
        assert one == [True, False, False, False, False], family
        assert named == [True, False], family


def test_strict_arguments_are_kept_where_calls_may_but_need_not_come() -> None:
    families = {name: write for name, write in WRITTEN.items() if name != JSON_FORM}
    allowed = _allowed(
        *(
            (
                _calls(family, [STRICT, TIME], "auto"),
                ["No call.", write(*TWO), f"First. {write(*ONE)}", write(("get_weather", WRONG))],
            )
            for family, write in families.items()
        )
    )
    assert dict(zip(families, allowed, strict=True)) == {
        family: [True, True, True, False] for family in families
    }
    assert _calls("hermes", [WEATHER, TIME], "auto") is None


@pytest.mark.parametrize("family", WRITTEN)
def test_what_may_be_written_is_what_we_read(family: str) -> None:
    machine = TOOL_FAMILIES[family].make([WEATHER, TIME])
    content, first = machine.feed(WRITTEN[family](*TWO))
    rest, last = machine.finish()
    read: dict[int, list[str]] = {}
    for part in (*first, *last):
        call = read.setdefault(part.index, ["", ""])
        call[0] += part.name or ""
        call[1] += part.arguments
    assert (content + rest).strip() == ""
    assert [(name, json.loads(it)) for name, it in read.values()] == [
        (name, json.loads(arguments)) for name, arguments in TWO
    ]


def test_guided_answers_and_those_behind_thoughts() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    json_ = constraint_format({"json": schema})
    assert json_ is not None
    thinking = REASONING_FAMILIES["qwen3"]
    said = '{"a": 1}'
    assert _allowed(
        (json_, [said, '{"a": "b"}', f"Well {said}"]),
        (constraint_format({"json_object": True}), ['{"b": []}', "[]"]),
        (constraint_format({"regex": "[0-9]{2}"}), ["42", "421"]),
        (constraint_format({"choice": ["yes", "no"]}), ["no", "none"]),
        (constraint_format({"grammar": 'root ::= "x"+'}), ["xx", "y"]),
        (behind_thoughts(thinking, json_, inside=False),
         [f"<think>So {{ it is</think>{said}", said, f"So</think>{said}"]),
        (behind_thoughts(thinking, json_, inside=True), [f"So</think>{said}", said, "So</think>x"]),
    ) == [
        [True, False, False],
        [True, False],
        [True, False],
        [True, False],
        [True, False],
        [True, False, False],
        [True, False, False],
    ]  # fmt: skip
