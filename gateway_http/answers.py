"""What OpenAI's answers share: what was asked to be shown, usage, reasons to finish; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from runtime.errors import EngineFailed
from wire.generate import Usage

_FINISH = {
    "stop": "stop",
    "length": "length",
    "repetition": "stop",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What all chunks of one answer share. `created` is in seconds since the Unix epoch.

    `choices` is n: the choices of each of the `prompts`. `top` is how many of the likeliest tokens
    were asked for, None without log probabilities. `reasoning` is whether thoughts are shown.
    Of the choices of a prompt the `best` are kept. With `echo` the prompt comes first, also in the
    log probabilities; `prompt_texts` are all that is shown. `prompt_logprobs` adds vLLM's.
    """

    id: str
    model: str
    created: int
    chat: bool
    prompts: int = 1
    choices: int = 1
    top: int | None = None
    token_ids: bool = False
    reasoning: bool = True
    best: int | None = None
    echo: bool = False
    prompt_texts: tuple[str, ...] | None = None
    prompt_logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


class PromptDetails(msgspec.Struct, frozen=True):
    """How much of the prompt was found in the KV cache, in tokens."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """How much of the answer was thought, in tokens."""

    reasoning_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """Token counts, as OpenAI names them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


def usage_body(parts: Sequence[Usage]) -> UsageBody:
    """The sum over an answer's prompts."""
    prompt = sum(part.prompt_tokens for part in parts)
    completion = sum(part.completion_tokens for part in parts)
    cached = sum(part.cached_tokens for part in parts)
    thought = CompletionDetails(sum(part.reasoning_tokens for part in parts))
    return UsageBody(prompt, completion, prompt + completion, PromptDetails(cached), thought)


def finish_reason(reason: str | None) -> str | None:
    """OpenAI's word. Raises EngineFailed when the choice was not finished but given up."""
    if reason is None:
        return None
    try:
        return _FINISH[reason]
    except KeyError:
        raise EngineFailed(f"the generation ended early: {reason}") from None
