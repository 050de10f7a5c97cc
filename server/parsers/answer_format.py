"""Which parsers a model's answers need: named, or seen from its chat template; and opening them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import InvalidConfig, InvalidRequest
from server.parsers.families import REASONING_FAMILIES, TOOL_FAMILIES
from server.parsers.harmony import HarmonyParser
from server.parsers.machine import ToolMachine
from server.parsers.parser import AnswerParser, Parsed
from server.parsers.remote import PREFIX as VLLM
from server.parsers.structure import (
    behind_thoughts,
    calls_format,
    constraint_format,
    form_of_calls,
    structural_tag,
)
from server.parsers.thinking import ThinkingMachine
from server.parsers.tools import ToolUse
from server.text.tokenizer import Tokenizer
from wire.generate import GenerateRequest

AUTO, NONE = "auto", "none"
HARMONY_CALLS, HARMONY_REASONING = "openai", "openai_gptoss"
"""vLLM's names for gpt-oss' form; either of them parses all of it."""


_HARMONY_TOKENS = ("<|channel|>", "<|message|>")
# What a template must hold, and must not, for its model to be of a family; the first that fits.
_TOOL_SIGNS: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
    (HARMONY_CALLS, ("<|channel|>", "<|message|>", "analysis", "functions."), ()),
    ("qwen3_coder", ("<tool_call>", "<function=", "<parameter="), ()),
    ("hermes", ("<tool_call>", "</tool_call>", "arguments"), ("<arg_key>", "<function")),
    ("mistral", ("[TOOL_CALLS]",), ()),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"), ()),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"), ("```json",)),
    ("llama3_json", ("<|python_tag|>", '"parameters": '), ()),
)
_REASONING_SIGNS: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
    (HARMONY_REASONING, ("<|channel|>", "<|message|>", "analysis"), ()),
    ("qwen3", ("<think>", "</think>", "enable_thinking", "<|im_start|>"), ()),
    ("deepseek_v3", ("</think>", "<｜Assistant｜>", "thinking"), ()),
    ("deepseek_r1", ("</think>", "<｜Assistant｜>"), ("thinking",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """How an answer is made and read.

    `structure` are its structured_outputs, None for the request's own; `calls` is the parser that
    looks for calls in it; `parsed` is whether it is parsed at all.
    """

    structure: dict[str, Any] | None = None
    calls: str | None = None
    parsed: bool = False


FREE_ANSWER = AnswerPlan()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How a model marks its thoughts and calls; None where it does not."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def plan(self, request: GenerateRequest, use: ToolUse, prompt: str) -> AnswerPlan:
        """Plan the answer to a request that uses its tools so, and was rendered to `prompt`.

        Raises InvalidRequest for a constraint beside calls that must come, and for tools whose
        calls nobody could read.
        """
        calls = form_of_calls(self.tool_call_parser, use)
        if request.separate_tool_calls and use.mode == "auto" and calls is None:
            raise InvalidRequest(
                "tools: this model has no parser for the calls it may decide to make; its worker "
                'needs --tool-call-parser, or the request a tool_choice of "required" or "none"',
                param="tools",
            )
        wanted = request.sampling.structured_outputs
        if use.forced and wanted:
            raise InvalidRequest(
                "structured_outputs: not together with a tool_choice that asks for a call",
                param="structured_outputs",
            )
        thoughts = self._thoughts(request.chat_template_kwargs, prompt)
        thinks = thoughts is not None or self.reasoning_parser not in (None, *REASONING_FAMILIES)
        calls = calls if request.separate_tool_calls else None
        return AnswerPlan(
            structure=self._structure(request, use, prompt, thoughts),
            calls=calls,
            parsed=calls is not None or (request.separate_reasoning and thinks),
        )

    def _structure(
        self,
        request: GenerateRequest,
        use: ToolUse,
        prompt: str,
        thoughts: ThinkingMachine | None,
    ) -> dict[str, Any] | None:
        wanted = request.sampling.structured_outputs
        thinks = thoughts is not None and thoughts.thinks
        if wanted and not thinks:
            return None
        format_ = constraint_format(wanted) if wanted else self._calls_format(request, use)
        if format_ is None:
            return None
        if thinks and self.reasoning_parser is not None:
            family = REASONING_FAMILIES[self.reasoning_parser]
            inside = family.begins_inside(prompt) is True
            format_ = behind_thoughts(family, format_, inside=inside)
        return structural_tag(format_)

    def _calls_format(self, request: GenerateRequest, use: ToolUse) -> dict[str, Any] | None:
        parser = form_of_calls(self.tool_call_parser, use)
        return calls_format(parser, use, parallel=request.parallel_tool_calls) if parser else None

    def remote(self, plan: AnswerPlan, *, reasoning: bool) -> tuple[str, str] | None:
        """The parsers of calls and thoughts that vLLM has to run, both or neither; "" is none."""
        names = (plan.calls or "", (self.reasoning_parser or "") if reasoning else "")
        return names if plan.parsed and any(it.startswith(VLLM) for it in names) else None

    def open(self, request: GenerateRequest, plan: AnswerPlan, prompt: str) -> AnswerParser | None:
        """Begin one choice; None when there is nothing to tell apart. Not for remote ones."""
        if not plan.parsed:
            return None
        thinks = request.separate_reasoning and self.reasoning_parser == HARMONY_REASONING
        if plan.calls == HARMONY_CALLS or (thinks and plan.calls is None):
            return HarmonyParser(calls=plan.calls is not None, reasoning=thinks)
        machine = TOOL_FAMILIES[plan.calls].make(request.tools) if plan.calls else None
        thoughts = None
        if request.separate_reasoning:
            thoughts = self._thoughts(request.chat_template_kwargs, prompt)
        return _SplitAnswer(thoughts, machine)

    def _thoughts(self, variables: Mapping[str, Any], prompt: str) -> ThinkingMachine | None:
        family = REASONING_FAMILIES.get(self.reasoning_parser or "")
        if family is None:
            return None
        if not family.is_on(variables):
            return None
        inside = family.begins_inside(prompt)
        return None if inside is False else ThinkingMachine(family, starts_inside=bool(inside))


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
        return found if found and not _missing(_call_tokens(found), tokenizer) else None
    if name == HARMONY_CALLS or name.startswith(VLLM):
        return name
    if name not in TOOL_FAMILIES:
        raise _unknown("tool_call_parser", name, [HARMONY_CALLS, *TOOL_FAMILIES])
    _require("tool_call_parser", name, TOOL_FAMILIES[name].tokens, tokenizer)
    return name


def _reasoning_parser(name: str, tokenizer: Tokenizer, template: str) -> str | None:
    if name == NONE:
        return None
    if name == AUTO:
        found = _seen(_REASONING_SIGNS, template)
        return found if found and not _missing(_marks(found), tokenizer) else None
    if name == HARMONY_REASONING or name.startswith(VLLM):
        return name
    if name not in REASONING_FAMILIES:
        raise _unknown("reasoning_parser", name, [HARMONY_REASONING, *REASONING_FAMILIES])
    _require("reasoning_parser", name, _marks(name), tokenizer)
    return name


def _call_tokens(name: str) -> tuple[str, ...]:
    return _HARMONY_TOKENS if name == HARMONY_CALLS else TOOL_FAMILIES[name].tokens


def _marks(name: str) -> tuple[str, ...]:
    if name == HARMONY_REASONING:
        return _HARMONY_TOKENS
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


def _unknown(param: str, name: str, known: Sequence[str]) -> InvalidConfig:
    names = ", ".join([AUTO, NONE, *sorted(known), f"{VLLM}NAME"])
    return InvalidConfig(f"{param}: {name!r} is none of {names}", param=param)
