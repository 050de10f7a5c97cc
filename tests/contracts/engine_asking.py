"""How tests ask an engine, and what they keep of its answers."""

import asyncio
from typing import Any

from runtime.errors import ServingError
from tests.contracts.engine_requests import PROMPT
from tests.waiting import eventually
from wire.sampling import Sampling
from wire.tokens import FinishReason, TokenDelta, TokenRequest
from worker.engine import Engine

WAIT_S = 60.0


class Collected:
    """A TokenSink that keeps everything and knows when its request is over."""

    def __init__(self, choices: int = 1) -> None:
        self.deltas: list[TokenDelta] = []
        self.error: ServingError | None = None
        self.over = asyncio.Event()
        self.first = asyncio.Event()
        self._open = choices

    def put(self, delta: TokenDelta) -> None:
        assert not self.over.is_set(), "a delta came after the end"
        self.deltas.append(delta)
        self.first.set()
        self._open -= delta.finish_reason is not None
        if not self._open:
            self.over.set()

    def fail(self, error: ServingError) -> None:
        assert not self.over.is_set(), "an error came after the end"
        self.error = error
        self.first.set()
        self.over.set()

    def ids(self, index: int = 0) -> list[int]:
        return [i for delta in self.deltas if delta.index == index for i in delta.token_ids]

    def finish(self, index: int = 0) -> FinishReason | None:
        return [delta for delta in self.deltas if delta.index == index][-1].finish_reason

    def ends(self) -> list[tuple[FinishReason, int | str | None]]:
        return [
            (delta.finish_reason, delta.stop_reason)
            for delta in self.deltas
            if delta.finish_reason is not None
        ]

    async def wait(self) -> "Collected":
        async with asyncio.timeout(WAIT_S):
            await self.over.wait()
        return self


def ask(engine: Engine, prompt: Any = None, *, request_id: str = "a", **fields: Any) -> Collected:
    """Submit a request; sampling parameters and request fields by name."""
    request_fields = {
        name: fields.pop(name)
        for name in ("cache_salt", "priority", "lora_name", "data_parallel_rank", "session_id")
        if name in fields
    }
    fields = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | fields
    sink = Collected(fields.get("n", 1))
    request = TokenRequest(
        request_id=request_id,
        token_ids=PROMPT if prompt is None else prompt,
        sampling=Sampling(**fields),
        **request_fields,
    )
    engine.submit(request, sink)
    return sink


async def answer(engine: Engine, prompt: Any = None, **fields: Any) -> Collected:
    sink = await ask(engine, prompt, **fields).wait()
    assert sink.error is None, sink.error
    return sink


async def refusal(engine: Engine, prompt: Any = None, **fields: Any) -> ServingError:
    """The error a request gets, at once or as its end."""
    try:
        sink = ask(engine, prompt, **fields)
    except ServingError as error:
        return error
    await sink.wait()
    assert sink.error is not None, f"it was answered: {sink.deltas}"
    return sink.error


async def wait_idle(engine: Engine) -> None:
    await eventually(lambda: not engine.load().running + engine.load().waiting, limit_s=WAIT_S)
