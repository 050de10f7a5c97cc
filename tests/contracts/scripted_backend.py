"""A Backend that follows a script: for errors and disconnects no real engine produces on demand."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from wire.cards import ModelCard
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, TokenText, Usage

CARD = ModelCard(
    name="toy",
    path="",
    context_length=512,
    vocab_size=100,
    block_size=16,
    aliases=("toy-alias",),
    created=1_700_000_000,
)
Step = str | Exception | asyncio.Event


class ScriptedBackend:
    """Each step is a text to send, an error to raise, or an event to wait for."""

    def __init__(self, *steps: Step, card: ModelCard = CARD, ready: bool = True) -> None:
        self.steps: Sequence[Step] = steps or ("Par", "is", " é\n")
        self.card = card
        self.ready = ready
        self.requests: list[GenerateRequest] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.running = 0

    async def models(self) -> list[ModelCard]:
        return [self.card]

    async def is_ready(self, model: str | None = None) -> bool:
        return self.ready

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        self.requests.append(request)
        self.running += 1
        self.started.set()
        done = False
        try:
            async for delta in self._deltas(request):
                done = done or delta.final
                yield delta
        finally:
            self.running -= 1
            if not done:
                self.cancelled.set()

    async def _deltas(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        choices = range(request.sampling.n)
        count = 0
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            count += 1
            logprobs = [_token(step, count)] if request.sampling.logprobs is not None else None
            yield GenerateDelta(
                choices=[
                    ChoiceDelta(index=index, text=step, token_ids=[count], logprobs=logprobs)
                    for index in choices
                ],
                prompt_tokens=5,
            )
        yield GenerateDelta(
            choices=[ChoiceDelta(index=index, finish_reason="stop") for index in choices],
            usage=Usage(prompt_tokens=5, completion_tokens=count * len(choices), cached_tokens=2),
        )


def _token(text: str, token_id: int) -> TokenText:
    other = TokenText(token_id=99, token="~", logprob=-2.5, rank=2)
    this = TokenText(token_id=token_id, token=text, logprob=-0.25, rank=1)
    return TokenText(token_id=token_id, token=text, logprob=-0.25, rank=1, top=(this, other))
