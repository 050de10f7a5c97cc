"""The load client, a process of its own: `python -m benchmarks.suite.client`.

One line in, a Job as JSON; one line out, its Outcome. It reads the servers' CPU times itself,
at the moment that the measured part begins and ends.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import httpx2
import msgspec
import uvloop

from benchmarks.processes import cpu_s
from benchmarks.suite.jobs import (
    GRPC_STREAM,
    GRPC_UNARY,
    HTTP_UNARY,
    SSE,
    Job,
    Outcome,
    grpc_request,
    http_body,
    spread,
)
from runtime.grpc_options import GRPCIO, NATIVE
from runtime.rpc_client import RpcCaller
from transport.choice import make_channel
from wire.pool import KSERVE, rpc_types

CHAT = "/v1/chat/completions"
TIMEOUT_S = 120.0

_Cpu = dict[str, float]
"""Seconds of CPU by the name of a process."""


class _Meter:
    """Counts what arrives, and reads the CPU when all streams run and when the first ends."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._word = job.word.encode() if job.word else None
        self.arrivals: list[list[tuple[float, int]]] = [[] for _ in range(job.streams)]
        self.asked_s = [0.0] * job.streams
        self.tokens = self.messages = 0
        self._begun = 0
        self.begin = _cpu(job)
        self.running: tuple[_Cpu, int] | None = None
        self.running_s = 0.0
        self.ending: tuple[_Cpu, int] | None = None

    def asked(self, stream: int) -> None:
        self.asked_s[stream] = time.monotonic()

    def message(self, stream: int, content: bytes) -> None:
        found = bool(content) if self._word is None else content.count(self._word)
        if not found:
            return
        arrivals = self.arrivals[stream]
        arrivals.append((time.monotonic(), found))
        self.tokens += found
        self.messages += 1
        if len(arrivals) == 1:
            self._begun += 1
            if self._begun == self._job.streams:
                self.running, self.running_s = self._now(), arrivals[-1][0]

    def ended(self) -> None:
        if self.ending is None:
            self.ending = self._now()

    def _now(self) -> tuple[_Cpu, int]:
        return _cpu(self._job), self.tokens

    def outcome(self) -> Outcome:
        if not self.tokens:
            raise SystemExit("no token came")
        job, end_s = self._job, time.monotonic()
        whole = _per(self.begin, _cpu(job), self.tokens)
        steady = {}
        if self.running and self.ending and self.ending[1] > self.running[1]:
            (begin, before), (end, after) = self.running, self.ending
            steady = _per(begin, end, after - before)
        steadily = [[it for it in them if it[0] >= self.running_s] for them in self.arrivals]
        gaps = [b[0] - a[0] for them in steadily for a, b in pairwise(them)]
        behind = [lag for them in steadily for lag in lags(them)]
        firsts = [
            them[0][0] - s for them, s in zip(self.arrivals, self.asked_s, strict=True) if them
        ]
        return Outcome(
            expected=job.streams * job.tokens,
            tokens=self.tokens,
            messages=self.messages,
            seconds=round(end_s - min(self.asked_s), 3),
            cpu_us=steady,
            cpu_us_whole=whole,
            first_ms=spread(firsts),
            lag_ms=spread(behind) if behind else None,
            gap_ms=spread(gaps) if gaps else None,
        )


def _cpu(job: Job) -> _Cpu:
    return {name: cpu_s(pid) for name, pid in job.pids.items()}


def _per(begin: _Cpu, end: _Cpu, count: int) -> dict[str, float]:
    """Return the microseconds between, for each of so many."""
    return {name: round((s - begin[name]) / count * 1e6, 2) for name, s in end.items()}


def lags(arrivals: list[tuple[float, int]]) -> list[float]:
    """Return, per token, the seconds behind the earliest line of the stream's own mean pace."""
    times = [at for at, count in arrivals for _ in range(count)]
    if len(times) < 3:
        return []
    pace_s = (times[-1] - times[0]) / (len(times) - 1)
    offsets = [at - number * pace_s for number, at in enumerate(times)]
    earliest = min(offsets)
    return [it - earliest for it in offsets]


async def _grpc_streams(job: Job) -> Outcome:
    async with AsyncExitStack() as stack:
        channels = await _channels(job, stack)

        async def one(meter: _Meter, number: int) -> None:
            request = grpc_request(job, number)
            async with channels[number % len(channels)].stream(KSERVE, "ModelStreamInfer") as calls:
                meter.asked(number)
                calls.send(request)
                calls.half_close()
                async for answer in calls:
                    if answer.error_message:
                        raise SystemExit(f"the server answered: {answer.error_message}")
                    meter.message(number, _content(answer.infer_response))
                meter.ended()

        return await _run_streams(job, one)


def _content(response: Any) -> bytes:
    """The text of a response, whichever of the protocol's two places it stands in."""
    if response.raw_output_contents:
        return bytes(response.raw_output_contents[0])
    return b"".join(
        text
        for output in response.outputs
        if output.name == "text_output"
        for text in output.contents.bytes_contents
    )


async def _sse_streams(job: Job) -> Outcome:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=job.address, timeout=TIMEOUT_S, limits=limits) as http:

        async def one(meter: _Meter, number: int) -> None:
            body = http_body(job, number)
            meter.asked(number)
            async with http.stream("POST", CHAT, content=body, headers=_JSON) as answer:
                answer.raise_for_status()
                async for event in _events(answer):
                    meter.message(number, event)
            meter.ended()

        return await _run_streams(job, one)


_JSON = {"content-type": "application/json"}


async def _events(answer: Any) -> AsyncIterator[bytes]:
    """Yield events that bring content; several that arrive at once stay apart."""
    rest = b""
    async for part in answer.aiter_raw():
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            if b'"content":"' in event:
                yield event


async def _run_streams(job: Job, one: Callable[[_Meter, int], Any]) -> Outcome:
    meter = _Meter(job)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for number in range(job.streams):
            group.create_task(one(meter, number))
    return meter.outcome()


async def _channels(job: Job, stack: AsyncExitStack) -> list[RpcCaller]:
    found = []
    for _ in range(job.connections):
        channel = make_channel(
            job.address,
            transport=NATIVE if job.native else GRPCIO,
            rpc_types=rpc_types,
            keepalive_s=None,
        )
        stack.push_async_callback(channel.close)
        await channel.is_serving(timeout_s=5.0)
        found.append(channel)
    return found


async def _grpc_unary(job: Job) -> Outcome:
    async with AsyncExitStack() as stack:
        channels = await _channels(job, stack)

        async def one(number: int) -> None:
            channel = channels[number % len(channels)]
            request = grpc_request(job, number)
            await channel.unary(KSERVE, "ModelInfer", request, timeout_s=TIMEOUT_S)

        return await _run_unary(job, one)


async def _http_unary(job: Job) -> Outcome:
    async with httpx2.AsyncClient(base_url=job.address, timeout=TIMEOUT_S) as http:

        async def one(number: int) -> None:
            answer = await http.post(CHAT, content=http_body(job, number), headers=_JSON)
            answer.raise_for_status()

        return await _run_unary(job, one)


async def _run_unary(job: Job, one: Callable[[int], Any]) -> Outcome:
    taken: list[float] = []
    numbers = iter(range(job.requests))

    async def some() -> None:
        for number in numbers:
            began = time.monotonic()
            await one(number)
            taken.append(time.monotonic() - began)

    for number in range(-20, 0):
        await one(number)
    before = _cpu(job)
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for _ in range(job.streams):
            group.create_task(some())
    cpu_us = _per(before, _cpu(job), job.requests)
    return Outcome(
        expected=job.requests,
        tokens=len(taken),
        messages=len(taken),
        seconds=round(time.monotonic() - began, 3),
        cpu_us=cpu_us,
        cpu_us_whole=cpu_us,
        first_ms=spread(taken),
    )


KINDS: dict[str, Callable[[Job], Any]] = {
    GRPC_STREAM: _grpc_streams,
    SSE: _sse_streams,
    GRPC_UNARY: _grpc_unary,
    HTTP_UNARY: _http_unary,
}


def main() -> None:
    """Serve jobs until the end of input."""
    decode = msgspec.json.Decoder(Job).decode
    for line in sys.stdin.buffer:
        job = decode(line)
        outcome = uvloop.run(KINDS[job.kind](job))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
