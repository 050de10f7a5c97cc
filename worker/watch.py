"""Watches the engine while it serves: it dies, stops answering, stops stepping, fails a canary.

Each watch ends only when it has found the engine unfit to go on; there is no way back then but
another process.
"""

import asyncio
import logging
import time
from collections import Counter

from runtime.errors import DeadlineExceeded, InvalidConfig, InvalidRequest, ServingError
from wire.pooling import EMBED, Pooling
from wire.sampling import Sampling
from wire.tokens import TokenDelta, TokenRequest
from worker.config import WorkerConfig
from worker.flights import OK, Flights
from worker.request_check import check_request

log = logging.getLogger(__name__)

_LOOKS = 5


class EngineWatch:
    """Looks after the engine behind `flights`.

    A canary is a request for one token, sent when no request runs and no step was made for a
    while: what runs proves more than a canary could. `canary_outcomes` counts how they ended,
    `canary_ok_s` (`time.monotonic`) is when one last ended well. Raises InvalidConfig when the
    canary's prompt is none for this engine, which has started.
    """

    def __init__(self, flights: Flights, config: WorkerConfig) -> None:
        self.canary_outcomes: Counter[str] = Counter({OK: 0})
        self.canary_ok_s: float | None = None
        self._silent_looks = 0
        self._flights = flights
        self._engine = flights.engine
        self._config = config
        self._quiet_since_s = time.monotonic()
        self._canary = TokenRequest(
            request_id="canary",
            token_ids=list(config.canary_prompt),
            sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
            pooling=Pooling() if self._engine.info.task == EMBED else None,
        )
        try:
            check_request(self._canary, self._engine.info)
        except InvalidRequest as error:
            why = error.message.removeprefix("input_ids: ")
            raise InvalidConfig(f"canary_tokens: {why}", param="canary_tokens") from error

    async def run(self) -> str:
        """Watch until the engine is unfit; returns why."""
        watches = [self._watch_death(), self._watch_answers()]
        if self._config.stall_timeout_s:
            watches.append(self._watch_steps())
        if self._config.canary_interval_s:
            watches.append(self._watch_canaries())
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(watch) for watch in watches]
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                task.cancel()
        return done.pop().result()

    async def _watch_death(self) -> str:
        return f"the engine failed: {await self._engine.wait_failed()}"

    async def _watch_answers(self) -> str:
        """Make the engine answer a call now and then: it can be deaf and yet go on stepping."""
        timeout_s = self._config.probe_timeout_s
        while True:
            await asyncio.sleep(self._config.probe_interval_s)
            before_s = self._engine.load().stepped_s
            try:
                await self._engine.probe(timeout_s)
            except TimeoutError:
                # Within a step it answers nothing; how long one may take is the stall's limit.
                stepped = self._engine.load().stepped_s != before_s
                if stepped or not (self._flights and self._config.stall_timeout_s):
                    return f"the engine's probe failed: no answer for {timeout_s:g} s"
            except ServingError as error:
                return f"the engine's probe failed: {error.message}"

    async def _watch_steps(self) -> str:
        """Find an engine that makes no step while requests run.

        Looks are counted, not seconds: a process that was stopped for a while has not stalled.
        """
        timeout_s = self._config.stall_timeout_s
        stepped_s = self._engine.load().stepped_s
        # The first look may come right after the request.
        while self._silent_looks <= _LOOKS:
            await asyncio.sleep(timeout_s / _LOOKS)
            before_s, stepped_s = stepped_s, self._engine.load().stepped_s
            silent = self._flights and stepped_s == before_s
            self._silent_looks = self._silent_looks + 1 if silent else 0
        return (
            f"the engine made no step for {timeout_s:g} s while {len(self._flights)} requests ran"
        )

    @property
    def stalled(self) -> bool:
        """Whether the engine has made no step for a while although requests run."""
        return self._silent_looks > 1

    async def _watch_canaries(self) -> str:
        while True:
            wait_s = self._until_canary_s()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            failure = await self._send_canary()
            if failure is not None:
                return failure
            self._quiet_since_s = time.monotonic()

    def _until_canary_s(self) -> float:
        interval_s = self._config.canary_interval_s
        if self._flights:
            return interval_s
        since_s = max(self._quiet_since_s, self._engine.load().stepped_s or 0.0)
        return since_s + interval_s - time.monotonic()

    async def _send_canary(self) -> str | None:
        """Ask for one token; returns what is wrong with the engine, if anything is."""
        limit_s = self._config.canary_timeout_s
        sink = _CanarySink()
        try:
            self._engine.submit(self._canary, sink)
            async with asyncio.timeout(limit_s):
                await sink.over.wait()
            if sink.error is not None:
                raise sink.error
        except TimeoutError:
            if self._flights:
                return None  # requests came: now their steps tell
            self.canary_outcomes[DeadlineExceeded.reason] += 1
            return f"the canary failed: no token within {limit_s:g} s"
        except ServingError as error:
            self.canary_outcomes[error.reason] += 1
            return f"the canary failed: {error.message}"
        finally:
            self._engine.cancel(self._canary.request_id)
        self.canary_outcomes[OK] += 1
        self.canary_ok_s = time.monotonic()
        return None

    @property
    def canary_failures(self) -> int:
        """How many canaries did not end well."""
        return self.canary_outcomes.total() - self.canary_outcomes[OK]


class _CanarySink:
    def __init__(self) -> None:
        self.error: ServingError | None = None
        self.over = asyncio.Event()

    def put(self, delta: TokenDelta) -> None:
        if delta.finish_reason is not None:
            self.over.set()

    def fail(self, error: ServingError) -> None:
        self.error = error
        self.over.set()
