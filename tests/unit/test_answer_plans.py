"""What a request with tools or a structured answer asks of the model, and what is refused."""

from typing import Any

import msgspec
import pytest

from runtime.errors import InvalidRequest
from server.parsers.answer_format import AnswerFormat
from server.parsers.families import JSON_FORM
from server.parsers.tools import ToolUse, read_tools
from tests.answer_samples import TIME, TOOLS
from wire.generate import GenerateRequest
from wire.sampling import Sampling

NAMED = {"type": "function", "function": {"name": "get_time"}}
SCHEMA = {"json": {"type": "object"}}


def asking(structured: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", messages=[{}], tools=TOOLS,
        sampling=Sampling(structured_outputs=structured), **fields,
    )  # fmt: skip


def wanted(
    request: GenerateRequest, choice: Any = "none", prompt: str = "", **parsers: str
) -> dict[str, Any] | None:
    """The format that the answer must have."""
    plan = AnswerFormat(**parsers).plan(request, read_tools(TOOLS, choice), prompt)
    return plan.structure and plan.structure["structural_tag"]["format"]


def begins(format_: dict[str, Any] | None) -> list[str]:
    assert format_ is not None
    return (
        [format_["begin"]] if format_["type"] == "tag" else [it["begin"] for it in format_["tags"]]
    )


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        (None, ("auto", False, ["get_weather", "get_time"])),
        ("auto", ("auto", False, ["get_weather", "get_time"])),
        ("none", ("none", False, ["get_weather", "get_time"])),
        ("required", ("required", False, ["get_weather", "get_time"])),
        (NAMED, ("required", True, ["get_time"])),
    ],
)
def test_a_choice_says_what_may_be_called_and_whether_it_must(choice: Any, use: Any) -> None:
    read = read_tools(TOOLS, choice)
    assert (read.mode, read.named, [it.name for it in read.functions]) == use


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_without_tools_nothing_is_called(choice: Any) -> None:
    assert read_tools(None, choice) == ToolUse()


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([], "required", "tool_choice"),
        (None, NAMED, "tool_choice"),
        (TOOLS, "always", "tool_choice"),
        (TOOLS, {"type": "function"}, "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "get_rain"}}, "tool_choice"),
        ([TIME, TIME], None, "tools[1].function.name"),
        ([{"type": "search"}], None, "tools[0].type"),
        ([{"type": "function"}], None, "tools[0]"),
        ([TIME, {"type": "function", "function": {"name": "a b"}}], None, "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "a", "strict": 1}}], None,
         "tools[0].function.strict"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_are_refused_by_their_place(
    tools: Any, choice: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_tools(tools, choice)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")


def test_a_call_that_must_come_is_written_as_the_family_writes_it() -> None:
    request = asking()
    assert begins(wanted(request, NAMED, tool_call_parser="hermes")) == [
        '<tool_call>\n{"name": "get_time", "arguments": '
    ]
    assert begins(wanted(request, "required", tool_call_parser="qwen3_coder")) == [
        "<tool_call>\n<function=get_weather>\n", "<tool_call>\n<function=get_time>\n",
    ]  # fmt: skip


@pytest.mark.parametrize("parser", [None, "pythonic", "vllm:olmo3"])
def test_a_family_without_a_form_of_its_own_writes_json(parser: str | None) -> None:
    format_ = AnswerFormat(tool_call_parser=parser)
    request = asking(separate_tool_calls=True)
    plan = format_.plan(request, read_tools(TOOLS, NAMED), "")
    assert plan.calls == JSON_FORM
    assert plan.structure is not None
    tag = plan.structure["structural_tag"]["format"]
    assert tag["begin"] == '{"name": "get_time", "parameters": '


def test_where_calls_may_come_nothing_is_forced() -> None:
    assert wanted(asking(), "auto", tool_call_parser="hermes") is None
    assert wanted(asking(), "none", tool_call_parser="hermes") is None


def test_calls_are_read_only_for_those_who_asked_for_them_apart() -> None:
    format_ = AnswerFormat(tool_call_parser="hermes")
    use = read_tools(TOOLS, "auto")
    assert format_.plan(asking(separate_tool_calls=True), use, "").calls == "hermes"
    plan = format_.plan(asking(), use, "")
    assert (plan.calls, plan.parsed) == (None, False)


def test_calls_that_nobody_could_read_are_refused() -> None:
    request = asking(separate_tool_calls=True)
    with pytest.raises(InvalidRequest, match="--tool-call-parser") as caught:
        AnswerFormat().plan(request, read_tools(TOOLS, "auto"), "")
    assert caught.value.param == "tools"


def test_a_structured_answer_and_a_call_that_must_come_are_refused_together() -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted(asking(SCHEMA), "required", tool_call_parser="hermes")
    assert caught.value.param == "structured_outputs"


def test_the_requests_own_constraint_stands_where_the_model_does_not_think() -> None:
    assert wanted(asking(SCHEMA)) is None
    assert wanted(asking(SCHEMA), reasoning_parser="qwen3", prompt="<think>\n\n</think>\n") is None
    off = asking(SCHEMA, chat_template_kwargs={"enable_thinking": False})
    assert wanted(off, reasoning_parser="qwen3") is None


@pytest.mark.parametrize(("prompt", "begin"), [("Hi", "<think>"), ("Hi<think>\n", "")])
def test_what_is_asked_for_stands_behind_the_thoughts(prompt: str, begin: str) -> None:
    guided = wanted(asking(SCHEMA), reasoning_parser="qwen3", prompt=prompt)
    called = wanted(asking(), NAMED, prompt, reasoning_parser="qwen3", tool_call_parser="hermes")
    for format_ in (guided, called):
        assert format_ is not None
        thoughts, answer = format_["elements"]
        assert (thoughts["begin"], thoughts["end"]) == (begin, "</think>")
        assert answer["type"] in ("json_schema", "tag")


FORMAT = {"type": "const_string", "value": "x"}
TAG = {"type": "structural_tag", "format": FORMAT}


@pytest.mark.parametrize("tag", [TAG, msgspec.json.encode(TAG).decode()])
def test_a_structural_tag_stands_behind_the_thoughts_too(tag: Any) -> None:
    format_ = wanted(asking({"structural_tag": tag}), reasoning_parser="qwen3")
    assert format_ is not None
    assert format_["elements"][1] == FORMAT


@pytest.mark.parametrize("tag", ["{", "[]", "{}", {"structures": [], "triggers": []}])
def test_a_structure_that_is_none_of_ours_is_left_to_the_engine(tag: Any) -> None:
    assert wanted(asking({"structural_tag": tag}), reasoning_parser="qwen3") is None
