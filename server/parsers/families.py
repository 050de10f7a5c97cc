"""The parsers we have, by vLLM's names for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from server.parsers.json_call import BareJson, TaggedJson
from server.parsers.machine import ToolMachine
from server.parsers.marked_calls import DEEPSEEK_V3, DEEPSEEK_V31, MarkedCalls, MistralCalls
from server.parsers.pythonic_calls import PythonicCalls
from server.parsers.thinking import Thinking
from server.parsers.xml_calls import XmlCalls

Tools: TypeAlias = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFamily:
    """How a family writes calls.

    Its tokenizers have each of `tokens` as one token: without them the model cannot be of it.
    """

    make: Callable[[Tools], ToolMachine]
    tokens: tuple[str, ...] = ()


def _tagged(_: Tools) -> ToolMachine:
    return TaggedJson("<tool_call>", "</tool_call>")


def _bare(_: Tools) -> ToolMachine:
    return BareJson("<|python_tag|>")


JSON_FORM = "json"
"""Calls as JSON objects alone: what every model can be made to write."""

TOOL_FAMILIES: Mapping[str, ToolFamily] = {
    JSON_FORM: ToolFamily(make=_bare),
    "hermes": ToolFamily(make=_tagged),
    "qwen3_coder": ToolFamily(make=XmlCalls),
    "qwen3_xml": ToolFamily(make=XmlCalls),
    "llama3_json": ToolFamily(make=_bare, tokens=("<|python_tag|>",)),
    "llama4_json": ToolFamily(make=_bare, tokens=("<|python_tag|>",)),
    "pythonic": ToolFamily(make=lambda _: PythonicCalls()),
    "llama4_pythonic": ToolFamily(
        make=lambda _: PythonicCalls("<|python_start|>", "<|python_end|>")
    ),
    "mistral": ToolFamily(make=lambda _: MistralCalls(), tokens=(MistralCalls.MARK,)),
    "deepseek_v3": ToolFamily(
        make=lambda _: MarkedCalls(DEEPSEEK_V3),
        tokens=(DEEPSEEK_V3.section, DEEPSEEK_V3.section_end),
    ),
    "deepseek_v31": ToolFamily(
        make=lambda _: MarkedCalls(DEEPSEEK_V31),
        tokens=(DEEPSEEK_V31.section, DEEPSEEK_V31.section_end),
    ),
}

REASONING_FAMILIES: Mapping[str, Thinking] = {
    "deepseek_r1": Thinking(begins=("<think>",), ends=("</think>",), tokens=True),
    "qwen3": Thinking(
        begins=("<think>",),
        ends=("</think>",),
        breaks=("<tool_call>",),
        switches=("enable_thinking",),
    ),
    "deepseek_v3": Thinking(
        begins=("<think>",),
        ends=("</think>",),
        tokens=True,
        switches=("thinking", "enable_thinking"),
        by_default=False,
    ),
    "granite": Thinking(
        begins=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
        always=False,
    ),
}
