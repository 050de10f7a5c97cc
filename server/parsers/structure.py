"""What an answer must look like, as structural tags: calls that must come, thoughts before it all.

The formats are those of xgrammar's structural tags (xgrammar.structural_tag), which vLLM takes as
`structured_outputs.structural_tag`; how families write calls is in xgrammar's builtin ones, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from server.parsers.families import JSON_FORM
from server.parsers.marked_calls import DEEPSEEK_V3, DEEPSEEK_V31, Layout
from server.parsers.thinking import Thinking
from server.parsers.tools import Function, ToolUse

Format: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """`begin` (with NAME for the function's) and `end` around the arguments of each call.

    `separator` stands between calls, `outer` around all of them.
    """

    begin: str
    end: str
    separator: str = "\n"
    outer: tuple[str, str] = ("", "")
    style: str = "json"

    @property
    def trigger(self) -> str:
        """What a model writes when it begins to call."""
        return self.outer[0] or self.begin.partition("NAME")[0]


def _marked(layout: Layout, kind: str, separator: str) -> _Form:
    return _Form(
        begin=f"{layout.begin}{kind}{layout.kind}NAME{layout.name_end}",
        end=layout.end,
        separator=separator,
        outer=(layout.section, layout.section_end),
    )


_HERMES = _Form(begin='<tool_call>\n{"name": "NAME", "arguments": ', end="}\n</tool_call>")
_XML = _Form(
    begin="<tool_call>\n<function=NAME>\n", end="</function>\n</tool_call>", style="qwen_xml"
)
_LLAMA = _Form(begin='{"name": "NAME", "parameters": ', end="}", separator="; ")
_FORMS: Mapping[str, _Form] = {
    "hermes": _HERMES,
    "qwen3_coder": _XML,
    "qwen3_xml": _XML,
    "llama3_json": _LLAMA,
    "llama4_json": _LLAMA,
    JSON_FORM: _LLAMA,
    "mistral": _Form(
        begin='{"name": "NAME", "arguments": ',
        end="}",
        separator=", ",
        outer=("[TOOL_CALLS][", "]"),
    ),
    "deepseek_v3": _marked(DEEPSEEK_V3, "function", "\n"),
    "deepseek_v31": _marked(DEEPSEEK_V31, "", ""),
}


def form_of_calls(parser: str | None, use: ToolUse) -> str | None:
    """The parser that reads the calls of an answer; None when none is looked for.

    A call that must come is written as plain JSON where its family has no form that can be forced.
    """
    if use.mode == "none":
        return None
    if use.forced and parser not in _FORMS:
        # Also for a parser of vLLM's, whose form is not known here.
        return JSON_FORM
    return parser


def calls_format(parser: str, use: ToolUse, *, parallel: bool) -> Format | None:
    """What makes the model call as `use` says; None when it may write as it likes."""
    form = _FORMS.get(parser)
    strict = any(function.strict for function in use.functions)
    if form is None or not (use.forced or strict):
        return None
    tags = [_tag(form, function, forced=use.forced) for function in use.functions]
    if use.named:
        return _around(form, tags[0])
    if use.forced:
        return _around(form, _separated(form, tags, parallel=parallel))
    if form.outer[0]:
        tags = [_around(form, _separated(form, tags, parallel=parallel))]
    return {
        "type": "triggered_tags",
        "triggers": [form.trigger],
        "tags": tags,
        "stop_after_first": not parallel,
    }


def _separated(form: _Form, tags: list[Format], *, parallel: bool) -> Format:
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": form.separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }


def _tag(form: _Form, function: Function, *, forced: bool) -> Format:
    checked = function.strict or (forced and function.strict is not False)
    schema = function.parameters if checked and function.parameters else {"type": "object"}
    return {
        "type": "tag",
        "begin": form.begin.replace("NAME", function.name),
        "content": {"type": "json_schema", "json_schema": schema, "style": form.style},
        "end": form.end,
    }


def _around(form: _Form, inner: Format) -> Format:
    begin, end = form.outer
    return {"type": "tag", "begin": begin, "content": inner, "end": end} if begin else inner


def constraint_format(spec: Mapping[str, Any]) -> Format | None:
    """VLLM's structured_outputs as a format; None for what has none."""
    match spec:
        case {"json": dict() as schema}:
            return {"type": "json_schema", "json_schema": schema}
        case {"json_object": True}:
            return {"type": "json_schema", "json_schema": {"type": "object"}}
        case {"regex": pattern}:
            return {"type": "regex", "pattern": pattern}
        case {"grammar": grammar}:
            return {"type": "grammar", "grammar": grammar}
        case {"choice": [*choices]}:
            elements = [{"type": "const_string", "value": choice} for choice in choices]
            return {"type": "or", "elements": elements}
        case {"structural_tag": tag}:
            return _format_of(tag)
        case _:
            return None


def _format_of(tag: str | Mapping[str, Any]) -> Format | None:
    """A structural tag's; None for the older kind, which lists triggers, and for no tag at all."""
    if isinstance(tag, str):
        try:
            tag = msgspec.json.decode(tag, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None
    found = tag.get("format")
    return found if isinstance(found, dict) else None


def behind_thoughts(family: Thinking, wanted: Format, *, inside: bool) -> Format:
    """The same behind what the model thinks first; `inside` when the prompt has begun that."""
    thoughts = {
        "type": "tag",
        "begin": "" if inside else family.begins[0],
        "content": {"type": "any_text"},
        "end": family.ends[0],
    }
    return {"type": "sequence", "elements": [thoughts, wanted]}


def structural_tag(wanted: Format) -> dict[str, Any]:
    """The structured_outputs that ask for a format."""
    return {"structural_tag": {"type": "structural_tag", "format": wanted}}
