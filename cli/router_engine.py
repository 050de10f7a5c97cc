"""The fleet behind a router, in the form of the engine that a worker's service stands on."""

import asyncio
from collections.abc import Sequence

from runtime.errors import EngineFailed, ServingError
from server.token_router import TokenRouter
from wire.tokens import TokenRequest, TokenSink
from worker.engine import EngineInfo, EngineLoad
from worker.kv_log import KvLog
from worker.listeners import Listeners


class RouterEngine:
    """Engine. It never dies: without a worker it refuses requests until there is one again."""

    kv_logs: tuple[KvLog, ...] = ()

    def __init__(self, router: TokenRouter) -> None:
        self.load_changed = Listeners()
        self._router = router

    @property
    def info(self) -> EngineInfo:
        """The model's facts."""
        card = self._router.model.card
        return EngineInfo(
            kind="router",
            vocab_size=card.vocab_size,
            context_length=card.context_length,
            block_size=card.block_size,
            kv_blocks=0,
            eos_token_ids=card.eos_token_ids,
            adapters=card.adapters,
        )

    @property
    def failure(self) -> str | None:
        """Why requests cannot be served at present; None while a worker is ready."""
        try:
            return None if self._router.model.ready else "no worker is ready"
        except ServingError as error:
            return error.message

    async def start(self) -> EngineInfo:
        """Nothing has to be started."""
        return self.info

    def submit(self, request: TokenRequest, sink: TokenSink) -> None:
        """Begin one request; the worker checks it, and what is wrong comes as `fail`."""
        self._router.submit(request, sink)

    def cancel(self, request_id: str) -> None:
        """End one request early."""
        self._router.cancel(request_id)

    def load(self) -> EngineLoad:
        """What runs through this router."""
        return EngineLoad(running=self._router.running)

    def loads(self) -> Sequence[EngineLoad]:
        """The same: a router has no ranks."""
        return (self.load(),)

    async def probe(self, timeout_s: float) -> None:
        """Raise EngineFailed while no worker is ready."""
        if self.failure is not None:
            raise EngineFailed(self.failure)

    async def wait_failed(self) -> str:
        """Wait for ever."""
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        """Nothing is held."""
