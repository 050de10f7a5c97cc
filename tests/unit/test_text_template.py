import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InvalidConfig, InvalidRequest, ServingError, Unsupported
from server.text.template import ChatTemplate, load_template
from server.text.tokenizer import load_tokenizer
from tests.unit.text_samples import byte_level, save_model

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is <b>2</b> & 2?\n"},
    {"role": "assistant", "content": "Four — 四 😀"},
    {"role": "user", "content": "Sure?"},
]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
FULL = """{{ bos_token }}{%- if tools %}
    {%- for tool in tools %}
{{ tool | tojson(indent=2) }}
    {% endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == "system" %}{% continue %}{% endif %}
  {%- if message.role == "assistant" %}
    {%- generation %}<a>{{ message.content | trim }}</a>{% endgeneration %}
  {%- else %}
<{{ message['role'] }}>{{ message.content + (pad_token or 'none') }}
  {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}<a>{% endif -%}
{{ strftime_now("%Y")[:2] }}{{ custom | default("unset") }}"""
TOOLS = [{"type": "function", "function": {"name": "f<x>", "parameters": {"é": 1}}}]
ORACLE = """
import json, sys
from transformers import PreTrainedTokenizerFast
for line in sys.stdin:
    case = json.loads(line)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(case["folder"])
    text = tokenizer.apply_chat_template(
        case["messages"], tools=case["tools"], tokenize=False, **case["options"]
    )
    print(json.dumps(text))
"""


def render(source: str, messages: Any, **options: Any) -> str:
    return ChatTemplate({"default": source}).render(messages, **options)


def refusal(messages: Any, source: str = PLAIN, **options: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        render(source, messages, **options)
    return caught.value


def test_rendering_agrees_with_transformers(model_folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path, byte_level(), chat_template=FULL, bos_token="<s>", eos_token="</s>")
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    looping = tmp_path / "parts"
    looping.mkdir()
    source = "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}"
    save_model(looping, byte_level(), chat_template=source)
    cases: list[dict[str, Any]] = [
        {"folder": str(folder), "messages": messages, "tools": tools, "options": options}
        for folder, messages, tools, options in [
            (model_folder, TURNS, None, {"add_generation_prompt": True}),
            (model_folder, TURNS[1:], None, {"add_generation_prompt": False}),
            (model_folder, TURNS[:3], None, {"continue_final_message": True}),
            (tmp_path, TURNS, TOOLS, {"add_generation_prompt": True}),
            (tmp_path, TURNS, None, {"add_generation_prompt": False, "custom": "set"}),
            (tmp_path, TURNS[:3], TOOLS, {"continue_final_message": True}),
            (looping, parts, None, {"add_generation_prompt": False}),
        ]
    ]
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    oracle = subprocess.run(
        [sys.executable, "-c", ORACLE], input=lines, capture_output=True, text=True, timeout=50
    )
    assert oracle.returncode == 0, oracle.stderr
    for case, line in zip(cases, oracle.stdout.splitlines(), strict=True):
        folder = Path(case["folder"])
        template = load_template(folder, load_tokenizer(folder).special_tokens)
        options = dict(case["options"])
        rendered = template.render(
            case["messages"],
            case["tools"],
            add_generation_prompt=options.pop("add_generation_prompt", False),
            continue_final_message=options.pop("continue_final_message", False),
            variables=options,
        )
        assert rendered == json.loads(line)


def test_text_parts_become_one_text_for_templates_that_want_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render(PLAIN, [{"role": "user", "content": parts}]) == "[user]one\ntwo"


@pytest.mark.parametrize(
    "loop",
    [
        "{% for p in m['content'] %}({{ p['text'] }}){% endfor %}",
        "{% set c = m.content %}{% for p in c %}({{ p.text }}){% endfor %}",
        "{% for p in m.content | selectattr('type') | list %}({{ p.text }}){% endfor %}",
    ],
)
def test_templates_that_loop_over_content_get_parts(loop: str) -> None:
    source = "{% for m in messages %}" + loop + "{% endfor %}"
    assert render(source, [{"role": "user", "content": "plain"}]) == "(plain)"
    parts = [{"type": "text", "text": "one"}, "two"]
    assert render(source, [{"role": "user", "content": parts}]) == "(one)(two)"


def test_templates_that_take_both_get_what_was_sent() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}S:{{ m.content }}"
        "{% else %}{% for p in m.content %}P:{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert render(source, [{"role": "user", "content": "a"}]) == "S:a"
    assert render(source, [{"role": "user", "content": [{"type": "text", "text": "a"}]}]) == "P:a"


def test_other_parts_are_unsupported_by_name() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [TURNS[0], {"role": "user", "content": [{"type": "text", "text": "?"}, image]}]
    error = refusal(messages)
    assert isinstance(error, Unsupported)
    assert error.param == "messages[1].content[1].type"
    assert "image_url" in error.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ({"role": "user"}, "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": 1, "content": "hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_wrong_messages_are_refused_by_place(messages: Any, param: str) -> None:
    error = refusal(messages)
    assert isinstance(error, InvalidRequest)
    assert error.param == param


def test_tool_call_arguments_reach_the_template_as_objects() -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments.city }}|{{ messages[0].content }}"
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert render(source, [message]) == "Oslo|"
    assert call["function"]["arguments"] == '{"city": "Oslo"}'  # type: ignore[index]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].nothing.more }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content | int + messages[7] }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ {1: messages} | tojson(indent=2) | from_json }}",
    ][:-1],
)
def test_a_templates_refusal_is_the_clients_error(source: str) -> None:
    error = refusal(TURNS, source)
    assert isinstance(error, InvalidRequest)
    assert error.param == "messages"


def test_the_templates_own_words_reach_the_client() -> None:
    error = refusal(TURNS, "{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in error.message


def test_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    assert render("{{ enable_thinking }}", TURNS, variables={"enable_thinking": False}) == "False"
    assert render("{{ self_ }}{{ self }}", TURNS, variables={"self_": 1}).startswith("1")
    error = refusal(TURNS, variables={"messages": []})
    assert error.param == "chat_template_kwargs"


def test_a_dropped_final_message_cannot_be_continued() -> None:
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert "drops" in refusal(TURNS, "{{ messages[0].content }}", **options).message
    assert refusal(TURNS, continue_final_message=True).param == "chat_template_kwargs"


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate({}).render(TURNS)


def test_template_files_come_before_the_configuration(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "default", "template": "from config"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_template(tmp_path, {}).render(TURNS) == "from config"
    (tmp_path / "chat_template.jinja").write_text("from file", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools", "utf-8")
    template = load_template(tmp_path, {})
    assert template.render(TURNS) == "from file"
    assert template.render(TURNS, TOOLS) == "tools"


def test_several_templates_need_a_default() -> None:
    assert ChatTemplate({"only": "x"}).render(TURNS) == "x"
    with pytest.raises(InvalidRequest, match="only a, b"):
        ChatTemplate({"a": "x", "b": "y"}).render(TURNS)


@pytest.mark.parametrize(
    "config",
    [
        '{"chat_template": 5}',
        '{"chat_template": [{"name": "x"}]}',
        '{"chat_template": "{% x"}',
        "[",
    ],
)
def test_a_broken_template_stops_the_model_from_loading(tmp_path: Path, config: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(InvalidConfig):
        load_template(tmp_path, {})
