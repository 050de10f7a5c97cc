"""Parsers of answers: what is found, that cuts change nothing, and that nothing is lost."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InvalidConfig
from server.parsers.answer_format import FREE_ANSWER, AnswerFormat, choose_format
from server.parsers.families import REASONING_FAMILIES, TOOL_FAMILIES
from server.parsers.parser import AnswerParser
from server.parsers.tools import ToolUse, read_tools
from server.text.tokenizer import Tokenizer
from tests.answer_samples import CALLS, PARIS, THOUGHTS, TOOLS
from wire.generate import GenerateRequest
from wire.sampling import Sampling

Found = tuple[str, str, list[tuple[str, str]]]


def parse(parser: AnswerParser | None, pieces: Iterable[str]) -> Found:
    """(thoughts, content, [(function, arguments)])."""
    assert parser is not None
    thoughts, content, calls, ids = "", "", [], set()
    for parsed in (*(parser.feed(piece, ()) for piece in pieces), parser.finish()):
        thoughts += parsed.reasoning
        content += parsed.content
        for delta in parsed.tool_calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                ids.add(delta.id)
                calls.append([delta.name, ""])
            calls[delta.index][1] += delta.arguments
    assert len(ids) == len(calls)
    return thoughts, content, [(name, arguments) for name, arguments in calls]


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", sampling=Sampling(), messages=[{}], tools=TOOLS,
        separate_reasoning=True, separate_tool_calls=True, **fields,
    )  # fmt: skip


def opened(
    *,
    calls: str | None = None,
    thoughts: str | None = None,
    prompt: str = "",
    variables: dict[str, Any] | None = None,
) -> AnswerParser | None:
    format_ = AnswerFormat(tool_call_parser=calls, reasoning_parser=thoughts)
    asked = request(chat_template_kwargs=variables or {})
    use = read_tools(TOOLS, None) if calls else ToolUse()
    return format_.open(asked, format_.plan(asked, use, prompt), prompt)


def called(name: str, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    thoughts, content, calls = parse(opened(calls=name), pieces)
    assert not thoughts
    return content, calls


def thought(name: str, *pieces: str, prompt: str = "") -> tuple[str, str]:
    thoughts, content, _ = parse(opened(thoughts=name, prompt=prompt), pieces)
    return thoughts, content


SAMPLES = [(name, text) for name, texts in CALLS.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), SAMPLES)
def test_where_an_answer_is_cut_changes_nothing(name: str, text: str) -> None:
    whole = called(name, text)
    assert called(name, *text) == whole
    for at in range(len(text)):
        assert called(name, text[:at], text[at:]) == whole


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in THOUGHTS.items() for text in texts]
)
def test_where_thoughts_are_cut_changes_nothing(name: str, text: str) -> None:
    whole = thought(name, text)
    assert thought(name, *text) == whole
    for at in range(len(text)):
        assert thought(name, text[:at], text[at:]) == whole


PIECES = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", '{"name": "f"', ', "arguments": ', '{"a": 1}', "}", "{",
         "[", "]", "f(", "a=1", ")", ",", ";", '"', "\\", "'", "<function=f>", "<parameter=a>",
         "</parameter>", "</function>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", " ", "\n", "x",
         "é", "🌧", "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
         "<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"]
    ),
    max_size=14,
)  # fmt: skip


@given(pieces=PIECES)
@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_any_text_is_parsed_the_same_however_it_is_cut(name: str, pieces: list[str]) -> None:
    whole = called(name, "".join(pieces))
    assert called(name, *pieces) == whole
    assert called(name, *"".join(pieces)) == whole


@given(text=st.text(alphabet="ab {}[]<>()\"'\\\n", max_size=40))
@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_a_text_without_calls_is_content_to_the_last_character(name: str, text: str) -> None:
    content, calls = called(name, text)
    if not calls:
        assert content == text


def test_arguments_come_as_they_are_written() -> None:
    parser = opened(calls="hermes")
    assert parser is not None
    text = f"<tool_call>{PARIS}</tool_call>"
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    found = [delta for piece in pieces for delta in parser.feed(piece, ()).tool_calls]
    assert found[0].name == "get_weather"
    assert [it.arguments for it in found if it.arguments] == ['{"ci', 'ty":', ' "Pa', 'ris"', "}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"city": "Paris"}</tool_call>'),
        ("hermes", "<tool_call>get_weather(Paris)</tool_call>"),
        ("hermes", '<tool_call>{"name"'),
        ("llama3_json", '{"city": "Paris"} and more'),
        ("llama3_json", "{ no object"),
        ("pythonic", "[get_weather, Paris]"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("mistral", '[TOOL_CALLS][{"city"'),
        ("qwen3_coder", "<tool_call>\n<function=get"),
        ("deepseek_v3", "<｜tool▁calls▁begin"),
    ],
)
def test_what_only_looks_like_a_call_stays_in_the_content(name: str, text: str) -> None:
    content, calls = called(name, text)
    assert not calls
    assert [it for it in ("Paris", "nothing", "object", "name", "get", "city", "begin")
            if it in text] == [it for it in ("Paris", "nothing", "object", "name", "get", "city",
                                             "begin") if it in content]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', {}),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
         {"a": "</tool_call>"}),
        ("mistral", '[TOOL_CALLS]f{"a": "}"}', {"a": "}"}),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}', {"a": 1}),
        ("qwen3_coder", "<function=f><parameter=a>1", {"a": "1"}),
        ("qwen3_coder", "<function=f>\n<parameter=a>\n1\n<parameter=b>\n2\n</function>",
         {"a": "1", "b": "2"}),
        ("pythonic", "[f(a=1, b=[true, null]", {"a": 1, "b": [True, None]}),
        ("pythonic", "[f(a='x', b=2", {"a": "x", "b": 2}),
    ],
)  # fmt: skip
def test_a_call_that_is_nearly_right_is_read(name: str, text: str, arguments: dict) -> None:
    content, calls = called(name, text)
    assert content == ""
    assert [(it, json.loads(found)) for it, found in calls] == [("f", arguments)]


def test_text_behind_a_call_is_kept_and_blanks_are_not() -> None:
    text = f"A <tool_call>{PARIS}</tool_call>\n<tool_call>{PARIS}</tool_call>\n"
    assert called("hermes", text)[0] == "A "
    assert called("hermes", text + "B")[0] == "A \nB"


def test_mistrals_ids_are_nine_letters_and_digits() -> None:
    parser = opened(calls="mistral")
    assert parser is not None
    (delta,) = parser.feed("[TOOL_CALLS]f{}", ()).tool_calls
    assert delta.id is not None
    assert len(delta.id) == 9
    assert delta.id.isalnum()


def test_a_call_within_thoughts_ends_them() -> None:
    parser = opened(calls="hermes", thoughts="qwen3")
    assert parser is not None
    assert parser.reasoning
    found = parse(parser, f"I think <tool_call>{PARIS}</tool_call>")
    assert found == ("I think ", "", [("get_weather", '{"city": "Paris"}')])
    assert not parser.reasoning


def test_the_prompt_says_whether_thoughts_go_on_or_are_over() -> None:
    assert thought("qwen3", "a</think>b", prompt="assistant\n<think>\n") == ("a", "b")
    assert opened(thoughts="qwen3", prompt="<think>\n\n</think>\n\n") is None
    assert thought("granite", "Hello") == ("", "Hello")


def test_thoughts_are_switched_by_the_templates_variables() -> None:
    for name, variables, thinks in (
        ("qwen3", {}, True),
        ("qwen3", {"enable_thinking": False}, False),
        ("deepseek_v3", {}, False),
        ("deepseek_v3", {"thinking": True}, True),
        ("deepseek_v3", {"thinking": False, "enable_thinking": True}, True),
    ):
        assert (opened(thoughts=name, variables=variables) is not None) is thinks


def test_without_tools_or_wish_there_is_nothing_to_parse() -> None:
    both = AnswerFormat(tool_call_parser="hermes", reasoning_parser="qwen3")
    plain = msgspec.structs.replace(
        request(), separate_reasoning=False, separate_tool_calls=False, tools=None
    )
    assert both.plan(plain, ToolUse(), "") == FREE_ANSWER
    assert both.open(plain, FREE_ANSWER, "") is None
    assert opened() is None


def tokenizer(*tokens: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(list(tokens))
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("template", "tokens", "calls", "thoughts"),
    [
        ("{{ messages }}", (), None, None),
        ('<tool_call>{"name": ..., "arguments": ...}</tool_call>', (), "hermes", None),
        ("<|im_start|>{% if enable_thinking is false %}<think></think>{% endif %}"
         "<tool_call></tool_call> arguments", (), "hermes", "qwen3"),
        ("<tool_call><function=f><parameter=p>", (), "qwen3_coder", None),
        ("[TOOL_CALLS]", (), None, None),
        ("[TOOL_CALLS]", ("[TOOL_CALLS]",), "mistral", None),
        ('<|python_tag|> {"name": ..., "parameters": ...}', ("<|python_tag|>",), "llama3_json",
         None),
        ("<｜Assistant｜></think>", ("<think>", "</think>"), None, "deepseek_r1"),
        ("<tool_call>x<arg_key>k</arg_key></tool_call> arguments", (), None, None),
    ],
)  # fmt: skip
def test_a_template_shows_the_family_where_that_is_certain(
    template: str, tokens: tuple[str, ...], calls: str | None, thoughts: str | None
) -> None:
    found = choose_format("auto", "auto", tokenizer(*tokens), template)
    assert (found.tool_call_parser, found.reasoning_parser) == (calls, thoughts)
    assert choose_format("none", "none", tokenizer(*tokens), template) == AnswerFormat()


@pytest.mark.parametrize(
    ("calls", "thoughts", "why"),
    [
        ("herms", "none", "tool_call_parser: 'herms' is none of auto, none, deepseek_v3"),
        ("none", "think", "reasoning_parser: 'think' is none of auto, none, deepseek_r1"),
        ("mistral", "none", r"'mistral' needs a tokenizer with the token '\[TOOL_CALLS\]'"),
        ("none", "deepseek_r1", "'deepseek_r1' needs a tokenizer with the token '<think>'"),
    ],
)
def test_a_parser_that_cannot_be_is_refused_by_what_is_wrong(
    calls: str, thoughts: str, why: str
) -> None:
    with pytest.raises(InvalidConfig, match=why):
        choose_format(calls, thoughts, tokenizer(), "")


@pytest.mark.parametrize("name", [*TOOL_FAMILIES])
def test_every_family_of_calls_opens_without_tokens_that_it_does_not_name(name: str) -> None:
    tokens = TOOL_FAMILIES[name].tokens
    assert choose_format(name, "none", tokenizer(*tokens), "").tool_call_parser == name


@pytest.mark.parametrize("name", [*REASONING_FAMILIES])
def test_every_family_of_thoughts_opens_with_its_marks(name: str) -> None:
    family = REASONING_FAMILIES[name]
    marks = tokenizer(*family.begins, *family.ends)
    assert choose_format("none", name, marks, "").reasoning_parser == name


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
HARMONY = [
    (f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>So <|x|>.", ("Hm.", "So <|x|>.", [])),
    (
        f"{ANALYSIS}<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json"
        '<|message|>{"a": 1}<|call|>',
        ("Hm.", "", [("f", '{"a": 1}')]),
    ),
    (
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.f"
        "<|channel|>commentary json<|message|>{}",
        ("", "I look.", [("f", "{}")]),
    ),
    ("No mark < at all", ("", "No mark < at all", [])),
    ("<|channel|>analysis", ("", "<|channel|>analysis", [])),
]


@pytest.mark.parametrize(("text", "found"), HARMONY)
def test_gpt_oss_messages_are_told_apart_by_their_channels(text: str, found: Found) -> None:
    def parsed(*pieces: str) -> Found:
        return parse(opened(calls="openai", thoughts="openai_gptoss"), pieces)

    assert parsed(text) == parsed(*text) == found
    for at in range(len(text)):
        assert parsed(text[:at], text[at:]) == found


def test_a_parser_of_vllms_is_named_and_run_elsewhere() -> None:
    format_ = choose_format("vllm:kimi_k2", "qwen3", tokenizer(), "")
    plan = format_.plan(request(), read_tools(TOOLS, None), "")
    assert format_.remote(plan, reasoning=True) == ("vllm:kimi_k2", "qwen3")
    assert format_.remote(plan, reasoning=False) == ("vllm:kimi_k2", "")
    own = choose_format("hermes", "qwen3", tokenizer(), "")
    assert own.remote(own.plan(request(), read_tools(TOOLS, None), ""), reasoning=True) is None
