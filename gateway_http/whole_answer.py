"""A whole answer of OpenAI's two endpoints as one JSON body; pure."""

import math
from typing import Any

import msgspec

from gateway_http.answers import Answer, finish_reason, usage_body
from gateway_http.errors import JSON_TYPE, error_json
from gateway_http.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from runtime.errors import InternalError, ServingError
from wire.generate import ChoiceDelta, GenerateDelta, TokenText, ToolCallDelta, Usage


class _Choice:
    """What has come of one choice so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCallDelta] = []
        self.logprobs: list[TokenText] = []
        self.token_ids: list[int] = []
        self.cumulative = -math.inf
        self.count = 0
        self.finish: str | None = None
        self.stop_reason: int | str | None = None


class WholeAnswer:
    """Collects deltas until every prompt has its usage."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._choices = [_Choice() for _ in range(answer.prompts * answer.choices)]
        self._usage: list[Usage | None] = [None] * answer.prompts
        self._prompts: list[list[TokenText]] = [[] for _ in range(answer.prompts)]

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
        if delta.prompt_logprobs is not None:
            self._prompts[prompt] = delta.prompt_logprobs
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
        choice.count += len(part.token_ids)
        if part.logprobs:
            choice.logprobs.extend(part.logprobs)
        if part.cumulative_logprob is not None:
            choice.cumulative = part.cumulative_logprob
        if part.finish_reason is not None:
            choice.finish = finish_reason(part.finish_reason)
            choice.stop_reason = part.stop_reason

    def encode(self) -> bytes:
        """The JSON body. Raises InternalError while a choice has no end."""
        if any(choice.finish is None for choice in self._choices):
            raise InternalError("the backend ended a request before all of its choices")
        answer = self._answer
        kept = [(prompt, it) for prompt in range(answer.prompts) for it in self._kept(prompt)]
        body: dict[str, Any] = {
            "id": answer.id,
            "object": "chat.completion" if answer.chat else "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [self._choice(index, *item) for index, item in enumerate(kept)],
            "usage": usage_body([usage for usage in self._usage if usage is not None]),
        }
        if answer.chat and answer.prompt_logprobs:
            body["prompt_logprobs"] = prompt_logprobs(self._prompts[0])
        return msgspec.json.encode(body)

    def _kept(self, prompt: int) -> list[_Choice]:
        """A prompt's choices, or the likeliest of them, by the mean over their tokens."""
        count = self._answer.choices
        choices = self._choices[prompt * count : (prompt + 1) * count]
        if self._answer.best is None:
            return choices
        choices.sort(key=lambda it: it.cumulative / max(it.count, 1), reverse=True)
        return choices[: self._answer.best]

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

    def _choice(self, index: int, prompt: int, choice: _Choice) -> dict[str, Any]:
        answer = self._answer
        text = "".join(choice.text)
        logprobs = choice.logprobs
        if answer.prompt_texts is not None:
            text, logprobs = answer.prompt_texts[prompt], []
        if answer.echo:
            logprobs = [*self._prompts[prompt], *logprobs]
        body: dict[str, Any] = {"index": index}
        if answer.chat:
            body["message"] = self._message(choice, text)
        else:
            body["text"] = text
        body["logprobs"] = None
        if answer.top is not None:
            body["logprobs"] = (
                chat_logprobs(logprobs, answer.top)
                if answer.chat
                else completion_logprobs(logprobs, answer.top, 0)
            )
        body["finish_reason"] = choice.finish
        body["stop_reason"] = choice.stop_reason
        if answer.token_ids:
            body["token_ids"] = choice.token_ids
        if answer.prompt_logprobs and not answer.chat:
            body["prompt_logprobs"] = prompt_logprobs(self._prompts[prompt])
        return body
