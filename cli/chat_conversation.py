"""A conversation with a model: what was said so far, and how the last answer went."""

import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from cli.client import find_model
from gateway_http.fan_out import closable
from gateway_http.kserve_backend import KServeBackend
from wire.cards import ModelCard
from wire.generate import GenerateDelta, GenerateRequest
from wire.sampling import Sampling


@dataclass(slots=True)
class Answer:
    """How one answer went so far; times in seconds since it was asked for.

    `finish_reason` None means that it did not come to its end.
    """

    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    finish_reason: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """The rate behind the first token."""
        took_s = self.last_token_s - (self.first_token_s or 0.0)
        return (self.output_tokens - 1) / took_s if self.output_tokens > 1 and took_s > 0 else None

    def add(self, delta: GenerateDelta, after_s: float) -> str:
        """Take the next delta; returns its text."""
        text = ""
        for choice in delta.choices:
            text += choice.text
            self.output_tokens += len(choice.token_ids)
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.token_ids or choice.text:
                self.last_token_s = after_s
                if self.first_token_s is None:
                    self.first_token_s = after_s
        self.text += text
        self.prompt_tokens = delta.prompt_tokens or self.prompt_tokens
        if delta.usage is not None:
            self.output_tokens = delta.usage.completion_tokens
            self.cached_tokens = delta.usage.cached_tokens
        return text


class Conversation:
    """Sends all that was said with each question, since the server remembers nothing."""

    def __init__(
        self,
        server: KServeBackend,
        *,
        model: str | None,
        system: str | None,
        sampling: Sampling,
        timeout_s: float | None,
    ) -> None:
        self.server = server
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.last: Answer | None = None
        self._wanted = model
        self._model: ModelCard | None = None
        self._sampling = sampling
        self._timeout_s = timeout_s

    async def model(self) -> ModelCard:
        """Return the model that is asked; raises ServingError while the server has it not."""
        if self._model is None:
            self._model = await find_model(self.server, self._wanted)
        return self._model

    async def use_model(self, name: str) -> ModelCard:
        """Ask another model from now on; raises ServingError if the server has it not."""
        self._model = await find_model(self.server, name)
        return self._model

    def forget(self) -> None:
        """Begin anew, with the same system message."""
        self.messages.clear()
        self.last = None

    async def ask(self, text: str, say: Callable[[str], object]) -> Answer:
        """Ask, and `say` the answer as it comes; raises ServingError.

        What was said before an error or a cancellation stays part of the conversation. A question
        without any answer does not.
        """
        self.last = answer = Answer()
        question = {"role": "user", "content": text}
        model = await self.model()
        request = self._request(model.name, question)
        began_s = time.monotonic()
        try:
            async with aclosing(closable(self.server, request)) as deltas:
                async for delta in deltas:
                    said = answer.add(delta, time.monotonic() - began_s)
                    if said:
                        say(said)
        finally:
            if answer.text:
                self.messages += [question, {"role": "assistant", "content": answer.text}]
        return answer

    def _request(self, model: str, question: dict[str, str]) -> GenerateRequest:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return GenerateRequest(
            request_id=uuid.uuid4().hex,
            model=model,
            sampling=self._sampling,
            messages=[*system, *self.messages, question],
            timeout_s=self._timeout_s,
            deadline_s=time.monotonic() + self._timeout_s if self._timeout_s else None,
        )
