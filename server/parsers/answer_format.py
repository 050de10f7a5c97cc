"""Which parsers a model's answers need: named, or seen from its chat template; and opening them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import InvalidConfig
from server.parsers.families import REASONING_FAMILIES, TOOL_FAMILIES, Tools
from server.parsers.machine import ToolMachine
from server.parsers.parser import AnswerParser, Parsed
from server.parsers.thinking import Thinking, ThinkingMachine
from server.text.tokenizer import Tokenizer

AUTO, NONE = "auto", "none"

# What a template must hold, and must not, for its model to be of a family; the first that fits.
_TOOL_SIGNS: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
    ("qwen3_coder", ("<tool_call>", "<function=", "<parameter="), ()),
    ("hermes", ("<tool_call>", "</tool_call>", "arguments"), ("<arg_key>", "<function")),
    ("mistral", ("[TOOL_CALLS]",), ()),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"), ()),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"), ("```json",)),
    ("llama3_json", ("<|python_tag|>", '"parameters": '), ()),
)
_REASONING_SIGNS: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
    ("qwen3", ("<think>", "</think>", "enable_thinking", "<|im_start|>"), ()),
    ("deepseek_v3", ("</think>", "<｜Assistant｜>", "thinking"), ()),
    ("deepseek_r1", ("</think>", "<｜Assistant｜>"), ("thinking",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How a model marks its thoughts and calls; None where it does not."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    @property
    def thinking(self) -> Thinking | None:
        """The family of the reasoning parser."""
        return REASONING_FAMILIES[self.reasoning_parser] if self.reasoning_parser else None

    def open(
        self,
        *,
        tools: Tools = None,
        reasoning: bool = True,
        variables: Mapping[str, Any],
        prompt: str = "",
    ) -> AnswerParser | None:
        """Begin one choice; None when there is nothing to tell apart.

        Calls are looked for when there are `tools`. `variables` are the chat template's, `prompt`
        what it made of them.
        """
        machine = None
        if tools and self.tool_call_parser is not None:
            machine = TOOL_FAMILIES[self.tool_call_parser].make(tools)
        thoughts = self._thoughts(variables, prompt) if reasoning else None
        if machine is None and thoughts is None:
            return None
        return _SplitAnswer(thoughts, machine)

    def thinks_first(self, variables: Mapping[str, Any], prompt: str) -> bool:
        """Whether an answer to this prompt begins with thoughts, or may."""
        thoughts = self._thoughts(variables, prompt)
        return thoughts is not None and thoughts.thinks

    def _thoughts(self, variables: Mapping[str, Any], prompt: str) -> ThinkingMachine | None:
        family = self.thinking
        if family is None or not family.is_on(variables):
            return None
        inside = family.begins_inside(prompt)
        if inside is False:
            return None
        return ThinkingMachine(family, starts_inside=bool(inside))


class _SplitAnswer:
    """Thoughts first, then content with calls in it (an AnswerParser)."""

    def __init__(self, thoughts: ThinkingMachine | None, machine: ToolMachine | None) -> None:
        self._thoughts = thoughts
        self._machine = machine

    @property
    def reasoning(self) -> bool:
        """Whether the next token belongs to what the model thinks."""
        return self._thoughts is not None and self._thoughts.thinks

    def feed(self, text: str, token_ids: Sequence[int]) -> Parsed:
        """Take the next piece."""
        reasoning, content = ("", text) if self._thoughts is None else self._thoughts.feed(text)
        if self._machine is None:
            return Parsed(reasoning=reasoning, content=content)
        content, calls = self._machine.feed(content)
        return Parsed(reasoning=reasoning, content=content, tool_calls=calls)

    def finish(self) -> Parsed:
        """Return what was held back."""
        reasoning, content = ("", "") if self._thoughts is None else self._thoughts.finish()
        parsed = self.feed_content(content)
        parsed.reasoning = reasoning
        if self._machine is not None:
            rest, calls = self._machine.finish()
            parsed.content += rest
            parsed.tool_calls += calls
        return parsed

    def feed_content(self, content: str) -> Parsed:
        """Take a piece that is known to be no thought."""
        if self._machine is None or not content:
            return Parsed(content=content)
        content, calls = self._machine.feed(content)
        return Parsed(content=content, tool_calls=calls)


def choose_format(
    tool_call_parser: str, reasoning_parser: str, tokenizer: Tokenizer, template: str
) -> AnswerFormat:
    """The format of a model with this tokenizer and chat template.

    "auto" is what the template shows with certainty, "none" is none. Raises InvalidConfig for a
    name that is not known, or that the tokenizer cannot belong to.
    """
    return AnswerFormat(
        tool_call_parser=_tool_parser(tool_call_parser, tokenizer, template),
        reasoning_parser=_reasoning_parser(reasoning_parser, tokenizer, template),
    )


def _tool_parser(name: str, tokenizer: Tokenizer, template: str) -> str | None:
    if name == NONE:
        return None
    if name == AUTO:
        found = _seen(_TOOL_SIGNS, template)
        return found if found and not _missing(TOOL_FAMILIES[found].tokens, tokenizer) else None
    if name not in TOOL_FAMILIES:
        raise _unknown("tool_call_parser", name, TOOL_FAMILIES)
    _require("tool_call_parser", name, TOOL_FAMILIES[name].tokens, tokenizer)
    return name


def _reasoning_parser(name: str, tokenizer: Tokenizer, template: str) -> str | None:
    if name == NONE:
        return None
    if name == AUTO:
        found = _seen(_REASONING_SIGNS, template)
        return found if found and not _missing(_marks(found), tokenizer) else None
    if name not in REASONING_FAMILIES:
        raise _unknown("reasoning_parser", name, REASONING_FAMILIES)
    _require("reasoning_parser", name, _marks(name), tokenizer)
    return name


def _marks(name: str) -> tuple[str, ...]:
    family = REASONING_FAMILIES[name]
    return (*family.begins, *family.ends) if family.tokens else ()


def _seen(signs: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]], text: str) -> str | None:
    for name, present, absent in signs:
        if all(it in text for it in present) and not any(it in text for it in absent):
            return name
    return None


def _missing(tokens: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    return [token for token in tokens if tokenizer.backend.token_to_id(token) is None]


def _require(param: str, name: str, tokens: Sequence[str], tokenizer: Tokenizer) -> None:
    missing = _missing(tokens, tokenizer)
    if missing:
        raise InvalidConfig(
            f"{param}: {name!r} needs a tokenizer with the token {missing[0]!r}", param=param
        )


def _unknown(param: str, name: str, known: Mapping[str, Any]) -> InvalidConfig:
    names = ", ".join([AUTO, NONE, *sorted(known)])
    return InvalidConfig(f"{param}: {name!r} is none of {names}", param=param)
