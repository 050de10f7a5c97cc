"""A Backend that follows a script: for errors and disconnects no real engine produces on demand."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence

import msgspec

from wire.cards import ModelCard
from wire.generate import (
    ChoiceDelta,
    GenerateDelta,
    GenerateRequest,
    OnText,
    Tokenized,
    TokenText,
    Usage,
)

CARD = ModelCard(
    name="toy",
    path="",
    context_length=512,
    vocab_size=100,
    block_size=16,
    aliases=("toy-alias",),
    created=1_700_000_000,
)
Step = str | ChoiceDelta | Exception | asyncio.Event


class ScriptedBackend:
    """Each step is a text or a delta to send, an error to raise, or an event to wait for.

    The answer's reason to finish is `finish`, unless a step `ends` it. A prompt's tokens are its
    characters, or as many as its messages have.
    """

    finish = "stop"
    ends = True

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

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        self.requests.append(request)
        text = request.prompt or "".join(str(it.get("content")) for it in request.messages or ())
        ids = request.prompt_token_ids or [ord(it) % self.card.vocab_size for it in text]
        return Tokenized(
            token_ids=ids,
            context_length=self.card.context_length,
            token_strings=list(text) if with_strings else None,
        )

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        return "".join(chr(it % 128) for it in token_ids)

    async def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        self.requests.append(request)
        self.running += 1
        self.started.set()
        done = False
        try:
            first = True
            async for delta in self._deltas(request):
                done = done or delta.final
                if first or not _is_told(on_text, request, delta):
                    yield delta
                first = False
        finally:
            self.running -= 1
            if not done:
                self.cancelled.set()

    async def _deltas(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        if request.pooling is not None:
            vector = array("f", [1.0] + [0.0] * ((request.pooling.dimensions or 4) - 1))
            choice = ChoiceDelta(embedding=vector.tobytes(), finish_reason="stop")
            yield GenerateDelta(choices=[choice], usage=Usage(prompt_tokens=5, completion_tokens=0))
            return
        choices = range(request.sampling.n)
        count = 0
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            count += 1
            if isinstance(step, ChoiceDelta):
                fresh = msgspec.structs.replace(step, token_ids=[count])
                yield GenerateDelta(choices=[fresh], prompt_tokens=5)
                continue
            logprobs = [_token(step, count)] if request.sampling.logprobs is not None else None
            yield GenerateDelta(
                choices=[
                    ChoiceDelta(index=index, text=step, token_ids=[count], logprobs=logprobs)
                    for index in choices
                ],
                prompt_tokens=5,
            )
        yield GenerateDelta(
            choices=[
                ChoiceDelta(index=index, finish_reason=self.finish)
                for index in choices
                if self.ends
            ],
            usage=Usage(prompt_tokens=5, completion_tokens=count * len(choices), cached_tokens=2),
        )


def _is_told(on_text: OnText | None, request: GenerateRequest, delta: GenerateDelta) -> bool:
    """Tell a delta's text where it may be told instead of yielded; whether it was."""
    if on_text is None or not request.stream or delta.final or len(delta.choices) != 1:
        return False
    (choice,) = delta.choices
    plain = ChoiceDelta(index=0, text=choice.text, token_ids=choice.token_ids)
    return choice == plain and on_text(choice.text)


def _token(text: str, token_id: int) -> TokenText:
    other = TokenText(token_id=99, token="~", logprob=-2.5, rank=2)
    this = TokenText(token_id=token_id, token=text, logprob=-0.25, rank=1)
    return TokenText(token_id=token_id, token=text, logprob=-0.25, rank=1, top=(this, other))
