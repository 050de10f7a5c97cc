"""Where a running generation is, and what its worker is asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from runtime.request_record import RequestRecord
from server.generation import Generation
from server.models import ServedModel
from server.request_trace import RequestTrace
from server.text.codec import EncodedPrompt
from server.worker_link import WorkerLink
from wire.cards import ModelCard
from wire.generate import GenerateRequest
from wire.sampling import fit_to_context
from wire.tokens import TokenRequest


@dataclass(slots=True, eq=False)
class Flight:
    """One admitted request. `key` is its name in the router: clients may repeat their ids.

    `failed_workers` have lost it before its first token; `sent_s` is when a worker got it. The
    router knows of `told_tokens` of its answer.
    """

    generation: Generation
    model: ServedModel
    key: str
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    encoding: "asyncio.Future[EncodedPrompt] | None" = None
    prompt: EncodedPrompt | None = None
    link: WorkerLink | None = None
    slot: int = -1
    sent_s: float = 0.0
    told_tokens: int = 0
    trace: RequestTrace | None = None
    failed_workers: frozenset[str] = frozenset()

    @property
    def record(self) -> RequestRecord:
        """What is kept of it."""
        return self.generation.record

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call unless it is over by then."""
        self.timers.append(asyncio.get_running_loop().call_later(delay_s, call))

    def cancel_timers(self) -> None:
        """Wait for no limit any more."""
        for timer in self.timers:
            timer.cancel()


def token_request(
    request: GenerateRequest,
    prompt: EncodedPrompt,
    card: ModelCard,
    *,
    rank: int | None,
    traceparent: str | None,
) -> TokenRequest:
    """Build the request for a worker's rank, None where it has one only.

    Raises ContextLengthExceeded when the prompt leaves no room.
    """
    fields = ("messages", "prompt_token_ids")
    # An embedding needs no room for an answer.
    room = 1 if request.pooling is not None else 0
    sampling = fit_to_context(
        request.sampling,
        prompt_tokens=len(prompt.token_ids),
        context_length=card.context_length + room,
        param=next((it for it in fields if getattr(request, it) is not None), "prompt"),
    )
    # Stop strings are the front door's; the worker handles tokens only.
    sampling = msgspec.structs.replace(sampling, stop=())
    if prompt.answer.structure is not None:
        sampling = msgspec.structs.replace(sampling, structured_outputs=prompt.answer.structure)
    return TokenRequest(
        request_id=request.request_id,
        token_ids=prompt.token_ids,
        sampling=sampling,
        lora_name=request.lora_name,
        priority=request.priority,
        cache_salt=request.cache_salt,
        session_id=request.session_id,
        data_parallel_rank=rank,
        traceparent=traceparent,
        pooling=request.pooling,
    )
