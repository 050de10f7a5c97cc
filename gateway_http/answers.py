"""Deltas to OpenAI's answer objects: usage, log probabilities and whole answers; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway_http.errors import JSON_TYPE, error_json
from runtime.errors import EngineFailed, InternalError, ServingError
from wire.generate import ChoiceDelta, GenerateDelta, TokenText, ToolCallDelta, Usage

LOWEST_LOGPROB = -9999.0

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


def chat_logprobs(tokens: Sequence[TokenText], top: int) -> dict[str, Any]:
    """ChatCompletion's choices[].logprobs, with the `top` likeliest tokens at each position."""
    content = []
    for token in tokens:
        entry = _chat_token(token)
        entry["top_logprobs"] = [_chat_token(other) for other in token.top[:top]]
        content.append(entry)
    return {"content": content, "refusal": None}


def _chat_token(token: TokenText) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LOWEST_LOGPROB),
        "bytes": list(token.token.encode("utf-8", "surrogatepass")),
    }


def completion_logprobs(tokens: Sequence[TokenText], top: int, offset: int) -> dict[str, Any]:
    """Completion's choices[].logprobs. `offset`: characters of this choice before these tokens."""
    offsets, likeliest = [], []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
        position = {token.token: max(token.logprob, LOWEST_LOGPROB)}
        for other in token.top[:top]:
            position.setdefault(other.token, max(other.logprob, LOWEST_LOGPROB))
        likeliest.append(position)
    return {
        "text_offset": offsets,
        "token_logprobs": [max(token.logprob, LOWEST_LOGPROB) for token in tokens],
        "tokens": [token.token for token in tokens],
        "top_logprobs": likeliest,
    }


class _Choice:
    """What has come of one choice so far."""

    __slots__ = ("calls", "finish", "logprobs", "reasoning", "stop_reason", "text", "token_ids")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCallDelta] = []
        self.logprobs: list[TokenText] = []
        self.token_ids: list[int] = []
        self.finish: str | None = None
        self.stop_reason: int | str | None = None


class WholeAnswer:
    """Collects deltas until every prompt has its usage."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._choices = [_Choice() for _ in range(answer.prompts * answer.choices)]
        self._usage: list[Usage | None] = [None] * answer.prompts

    @property
    def complete(self) -> bool:
        """Whether `encode` has everything."""
        return all(usage is not None for usage in self._usage)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that the encoded body needs."""
        return [JSON_TYPE]

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer instead, when there is none."""
        return error_json(error)

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta of prompt number `prompt`."""
        for part in delta.choices:
            self._add_choice(self._choices[prompt * self._answer.choices + part.index], part)
        if delta.usage is not None:
            self._usage[prompt] = delta.usage

    def _add_choice(self, choice: _Choice, part: ChoiceDelta) -> None:
        choice.text.append(part.text)
        choice.reasoning.append(part.reasoning)
        for call in part.tool_calls:
            if call.id is not None:
                choice.calls.append(call)
            else:
                choice.calls[-1].arguments += call.arguments
        if self._answer.token_ids:
            choice.token_ids.extend(part.token_ids)
        if part.logprobs:
            choice.logprobs.extend(part.logprobs)
        if part.finish_reason is not None:
            choice.finish = finish_reason(part.finish_reason)
            choice.stop_reason = part.stop_reason

    def encode(self) -> bytes:
        """The JSON body. Raises InternalError while a choice has no end."""
        if any(choice.finish is None for choice in self._choices):
            raise InternalError("the backend ended a request before all of its choices")
        kind = "chat.completion" if self._answer.chat else "text_completion"
        return msgspec.json.encode(
            {
                "id": self._answer.id,
                "object": kind,
                "created": self._answer.created,
                "model": self._answer.model,
                "choices": [self._choice(*item) for item in enumerate(self._choices)],
                "usage": usage_body([usage for usage in self._usage if usage is not None]),
            }
        )

    def _message(self, choice: _Choice, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        reasoning = "".join(choice.reasoning)
        if reasoning and self._answer.reasoning:
            message["reasoning"] = message["reasoning_content"] = reasoning
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in choice.calls
            ]
        return message

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        answer = self._answer
        text = "".join(choice.text)
        body: dict[str, Any] = {"index": index}
        if answer.chat:
            body["message"] = self._message(choice, text)
        else:
            body["text"] = text
        body["logprobs"] = None
        if answer.top is not None:
            body["logprobs"] = (
                chat_logprobs(choice.logprobs, answer.top)
                if answer.chat
                else completion_logprobs(choice.logprobs, answer.top, 0)
            )
        body["finish_reason"] = choice.finish
        body["stop_reason"] = choice.stop_reason
        if answer.token_ids:
            body["token_ids"] = choice.token_ids
        return body
