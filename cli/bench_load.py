"""A load of equal requests with random prompts, and what is measured of their answers."""

import asyncio
import random
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gateway_http.fan_out import closable
from runtime.errors import ServingError
from wire.cards import ModelCard
from wire.generate import Backend, GenerateRequest
from wire.sampling import make_sampling

_WORDS = ("tree", "house", "river", "stone", "light", "music", "paper", "green", "seven", "cloud")


def _seconds() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Measured:
    """What came of the requests; times in seconds.

    `between_tokens_s` has a value per token behind the first: tokens that come together share the
    time since those before them.
    """

    ok: int = 0
    unfinished: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, ServingError] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_s: "array[float]" = field(default_factory=_seconds)
    between_tokens_s: "array[float]" = field(default_factory=_seconds)
    whole_s: "array[float]" = field(default_factory=_seconds)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def ended(self) -> int:
        """Requests that got an answer or an error."""
        return self.ok + self.failed.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is sent: until `requests` were, or for `duration_s`, whichever ends first.

    With `concurrency` so many requests are under way at any time; with `rate` they are sent so
    often per second. One of the two is None. `prompt_tokens` are of each prompt, `max_tokens` of
    each answer; `timeout_s` limits a request.
    """

    requests: int | None
    duration_s: float | None
    concurrency: int | None
    rate: float | None
    prompt_tokens: int
    max_tokens: int
    timeout_s: float | None


class Load:
    """Sends what is planned; `seed` makes the same prompts and times again."""

    def __init__(self, server: Backend, model: ModelCard, plan: Plan, seed: int | None) -> None:
        self.model = model
        self.plan = plan
        self.measured = Measured()
        self.in_flight = 0
        self.on_change: Callable[[], None] = lambda: None
        self._server = server
        self._random = random.Random(seed)
        self._sampling = make_sampling({"max_tokens": plan.max_tokens, "ignore_eos": True})
        self._sent = 0
        self._began_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Time since the first request was sent."""
        return time.monotonic() - self._began_s

    async def warm_up(self, count: int) -> None:
        """Send requests that are not measured; raises the ServingError of one that fails."""
        for _ in range(count):
            async with aclosing(closable(self._server, self._request())) as deltas:
                async for _delta in deltas:
                    pass

    async def run(self) -> None:
        """Send the requests and wait for their ends. `measured` holds also if it is cancelled."""
        self._began_s = time.monotonic()
        cpu_s = time.process_time()
        try:
            async with asyncio.TaskGroup() as group:
                if self.plan.rate is not None:
                    await self._send_at(self.plan.rate, group)
                for _ in range(self.plan.concurrency or 0):
                    group.create_task(self._send_in_turn())
        finally:
            self.measured.elapsed_s = self.elapsed_s
            self.measured.cpu_s = time.process_time() - cpu_s

    async def _send_in_turn(self) -> None:
        while self._may_send(time.monotonic()):
            await self._measure()

    async def _send_at(self, rate: float, group: asyncio.TaskGroup) -> None:
        due_s = time.monotonic()
        while self._may_send(due_s):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            group.create_task(self._measure())
            due_s += self._random.expovariate(rate)

    def _may_send(self, at_s: float) -> bool:
        requests, duration_s = self.plan.requests, self.plan.duration_s
        if requests is not None and self._sent >= requests:
            return False
        if duration_s is not None and at_s - self._began_s >= duration_s:
            return False
        self._sent += 1
        return True

    async def _measure(self) -> None:
        measured = self.measured
        self.in_flight += 1
        try:
            await self._answer()
        except ServingError as error:
            measured.failed[error.reason] += 1
            measured.examples.setdefault(error.reason, error)
        except asyncio.CancelledError:
            measured.unfinished += 1
            raise
        else:
            measured.ok += 1
        finally:
            self.in_flight -= 1
            self.on_change()

    async def _answer(self) -> None:
        request, measured = self._request(), self.measured
        began_s = now_s = time.monotonic()
        last_s: float | None = None
        async with aclosing(closable(self._server, request)) as deltas:
            async for delta in deltas:
                now_s = time.monotonic()
                count = sum(len(choice.token_ids) for choice in delta.choices)
                if not count:
                    continue
                if last_s is None:
                    measured.first_token_s.append(now_s - began_s)
                    measured.prompt_tokens += delta.prompt_tokens
                else:
                    measured.between_tokens_s.extend([(now_s - last_s) / count] * count)
                measured.output_tokens += count
                last_s = now_s
        measured.whole_s.append(now_s - began_s)

    def _request(self) -> GenerateRequest:
        timeout_s = self.plan.timeout_s
        prompt: dict[str, Any]
        if self.model.vocab_size:
            ids = range(self.model.vocab_size)
            prompt = {"prompt_token_ids": self._random.choices(ids, k=self.plan.prompt_tokens)}
        else:
            prompt = {"prompt": " ".join(self._random.choices(_WORDS, k=self.plan.prompt_tokens))}
        return GenerateRequest(
            request_id=uuid.uuid4().hex,
            model=self.model.name,
            sampling=self._sampling,
            timeout_s=timeout_s,
            deadline_s=time.monotonic() + timeout_s if timeout_s else None,
            **prompt,
        )
