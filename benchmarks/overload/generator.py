"""Sends requests at their appointed times, whatever becomes of the earlier ones.

A process of its own: `python -m benchmarks.overload.generator` reads a Plan as JSON from stdin and
writes what happened to each request, a list of Fate, to stdout.
"""

import asyncio
import json
import sys
from random import Random
from typing import Any

import msgspec
import uvloop

from benchmarks.processes import MODEL
from runtime.errors import ServingError
from runtime.grpc_client import RpcChannel
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types

OK = "ok"
CONNECTIONS = 4


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. Requests arrive at random (Poisson) with `rate_per_s`.

    With `clients` instead, that many at a time each send one after the other. Each request asks
    for a random number of tokens within `tokens` and is given up after `patience_s`.
    """

    address: str
    duration_s: float
    rate_per_s: float = 0.0
    clients: int = 0
    tokens: tuple[int, int]
    prompt_words: int
    patience_s: float
    seed: int


class Fate(msgspec.Struct, frozen=True, array_like=True):
    """What became of a request; times in seconds since the beginning, `first_s` of its tokens."""

    due_s: float
    sent_s: float
    first_s: float | None
    ended_s: float
    outcome: str
    tokens: int


def text_request(plan: Plan, rng: Random) -> Any:
    """A streaming request for an exact number of tokens."""
    request = pb.ModelInferRequest(model_name=MODEL, id="1")
    wanted = rng.randint(*plan.tokens)
    sampling = json.dumps({"max_tokens": wanted, "ignore_eos": True}).encode()
    words = " ".join(str(rng.randrange(10)) for _ in range(plan.prompt_words)).encode()
    for name, value in {"text_input": words, "sampling_parameters": sampling}.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\1")
    return request


class Generator:
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = Random(plan.seed)
        self._fates: list[Fate] = []
        self._channels: list[RpcChannel] = []
        self._began_s = 0.0

    async def run(self) -> list[Fate]:
        """Send everything, wait for every end."""
        plan = self._plan
        self._channels = [
            RpcChannel(plan.address, rpc_types=rpc_types, keepalive_s=None)
            for _ in range(CONNECTIONS)
        ]
        self._began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            if plan.clients:
                for _ in range(plan.clients):
                    group.create_task(self._client())
            else:
                due_s = 0.0
                while (due_s := due_s + self._rng.expovariate(plan.rate_per_s)) < plan.duration_s:
                    await asyncio.sleep(due_s - self._now_s())
                    group.create_task(self._ask(due_s))
        for channel in self._channels:
            await channel.close()
        return self._fates

    async def _client(self) -> None:
        while (now_s := self._now_s()) < self._plan.duration_s:
            await self._ask(now_s)

    async def _ask(self, due_s: float) -> None:
        sent_s, first_s, tokens, outcome = self._now_s(), None, 0, "no end"
        channel = self._rng.choice(self._channels)
        try:
            async with channel.stream(
                KSERVE, "ModelStreamInfer", timeout_s=self._plan.patience_s
            ) as stream:
                stream.send(text_request(self._plan, self._rng))
                stream.half_close()
                async for message in stream:
                    about = message.infer_response.parameters
                    if message.error_message:
                        outcome = about["penstock_reason"].string_param
                    elif "completion_tokens" in about:
                        tokens, outcome = about["completion_tokens"].int64_param, OK
                    if first_s is None:
                        first_s = self._now_s()
        except ServingError as error:
            outcome = error.reason
        fate = Fate(due_s, sent_s, first_s, self._now_s(), outcome, tokens)
        self._fates.append(fate)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s


def main() -> None:
    """Run one plan."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    fates = uvloop.run(Generator(plan).run())
    sys.stdout.buffer.write(msgspec.json.encode(fates))


if __name__ == "__main__":
    main()
