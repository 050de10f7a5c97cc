"""Accounts for the requests of a gateway that stands alone: the front door does its own."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import cast

import msgspec

from runtime.errors import Cancelled, Draining, InternalError, ServingError
from runtime.request_record import OK, UNKNOWN_MODEL, RequestRecord
from runtime.tracing import Tracing
from wire.cards import ModelCard
from wire.generate import Backend, GenerateDelta, GenerateRequest, OnText, Tokenized


class MeteredBackend:
    """A Backend around another one: metrics, a log line and a span for each request.

    While `is_stopping`, nothing is ready, and what is cancelled is given up by this process.
    """

    def __init__(
        self, backend: Backend, tracing: Tracing, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._backend = backend
        self._tracing = tracing
        self._is_stopping = is_stopping
        # Names that have been answered for: the target alone knows what it serves.
        self._models: set[str] = set()

    async def models(self) -> list[ModelCard]:
        """What the other says."""
        return await self._backend.models()

    async def is_ready(self, model: str | None = None) -> bool:
        """What the other says."""
        return not self._is_stopping() and await self._backend.is_ready(model)

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        """What the other says."""
        return await self._backend.tokenize(request, with_strings=with_strings)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """What the other says."""
        return await self._backend.detokenize(model, token_ids)

    async def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        """Run one request; closing the iterator cancels it."""
        now = time.monotonic()
        record = RequestRecord(
            request_id=request.request_id,
            endpoint=request.endpoint,
            principal=request.principal,
            started_s=now,
        )
        span = self._tracing.begin(
            request.endpoint, parent=request.traceparent, began_s=now, kind="server"
        )
        if span.traceparent is not None:
            request = msgspec.structs.replace(request, traceparent=span.traceparent)
        outcome, detail = Cancelled.reason, None
        try:
            async with aclosing(self._counted(request, record)) as deltas:
                async for delta in deltas:
                    if delta.final:
                        outcome = OK
                    yield delta
        except ServingError as error:
            outcome, detail = error.reason, error.message
            raise
        except Exception:
            outcome = InternalError.reason
            raise
        except asyncio.CancelledError:
            if self._is_stopping():
                outcome = Draining.reason
            raise
        finally:
            record.end(outcome, time.monotonic(), detail)
            span.end(error=None if outcome == OK else outcome)

    async def _counted(
        self, request: GenerateRequest, record: RequestRecord
    ) -> AsyncGenerator[GenerateDelta, None]:
        deltas = cast("AsyncGenerator[GenerateDelta, None]", self._backend.generate(request))
        record.admitted(request.model if request.model in self._models else UNKNOWN_MODEL)
        async with aclosing(deltas):
            async for delta in deltas:
                if record.model == UNKNOWN_MODEL:
                    self._models.add(request.model)
                    record.known_as(request.model)
                # A whole answer comes at once: when its first token was made is not seen here.
                if request.stream:
                    first_choice = any(choice.index == 0 for choice in delta.choices)
                    record.token(time.monotonic(), first_choice=first_choice)
                record.output_tokens += sum(len(choice.token_ids) for choice in delta.choices)
                if delta.usage is not None:
                    record.input_tokens = delta.usage.prompt_tokens
                    record.output_tokens = delta.usage.completion_tokens
                    record.cached_tokens = delta.usage.cached_tokens
                yield delta
