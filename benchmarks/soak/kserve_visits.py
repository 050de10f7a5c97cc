"""Visits over gRPC: streams, whole answers, many requests on one stream, clients that leave."""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from benchmarks.processes import MODEL
from benchmarks.soak.ledger import GOOD, LATE, LEFT, OK, Fault, Kind, Site
from runtime.errors import Cancelled, DeadlineExceeded, Overloaded, ServingError
from runtime.grpc_client import ClientStream, RpcChannel
from wire.generate import GenerateDelta, GenerateRequest
from wire.pool import KSERVE, rpc_types
from wire.sampling import Sampling
from wire.text_request import OutputSelection, encode_text_request
from wire.text_response import decode_text_response

WORDS = ("the", "river", "light", "under", "engine", "slow", "green", "seven", "paper", "again")
MOST_TOKENS = 120
_SELECTION = OutputSelection(outputs=("text_output", "output_ids", "finish_reason"))
_numbers = itertools.count()


def prompt(rng: Random) -> str:
    """One of some hundred prompts; many begin alike."""
    own = Random(rng.randrange(300))
    return " ".join(own.choices(WORDS, k=own.choice((3, 20, 60, 200))))


def ask(rng: Random, *, stream: bool = True, **changes: Any) -> GenerateRequest:
    """A good request. Temperature and seed are such that the answer is known in advance."""
    sampling: dict[str, Any] = {"max_tokens": rng.randint(1, MOST_TOKENS), "seed": 7}
    if rng.random() < 0.3:
        sampling["stop"] = (rng.choice("aeiou") + rng.choice("lnrst"),)
    if stream and rng.random() < 0.15:
        sampling["n"] = rng.randint(2, 3)
    fields = {"prompt": prompt(rng), "priority": rng.choice((0, 0, 0, 1, 5))} | changes
    return GenerateRequest(
        request_id=f"r{next(_numbers)}",
        model=MODEL,
        sampling=Sampling(**sampling),
        stream=stream,
        **fields,
    )


def spoiled(rng: Random, *, stream: bool = True) -> tuple[Any, str]:
    """A request message that must be refused, and how."""
    message = encode_text_request(ask(rng, stream=stream, prompt="x"), _SELECTION)
    match rng.randrange(5):
        case 0:
            message.model_name = "nobody"
            return message, "model_not_found"
        case 1:
            message.inputs[0].shape[:] = [9]
            return message, "invalid_request"
        case 2:
            message.inputs[0].datatype = "FP32"
            return message, "invalid_request"
        case 3:
            message.inputs[0].name = "nothing_known"
            return message, "invalid_request"
        case _:
            words = "word " * rng.choice((3000, 30_000))
            long = ask(rng, stream=stream, prompt=words)
            return encode_text_request(long, _SELECTION), "context_length_exceeded"


class NoMessage:
    """Sent in a message's place: bytes that are none."""

    def __init__(self, rng: Random) -> None:
        self._data = b"\xff" * rng.randint(1, 200)

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """What is sent."""
        return self._data


class Answers:
    """What has come for the requests of one stream; raises Fault for what must not come."""

    def __init__(self, site: Site, requests: Iterable[GenerateRequest]) -> None:
        self.ends: dict[str, str] = {}
        self._site = site
        self._requests = {request.request_id: request for request in requests}
        self._ids: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    @property
    def complete(self) -> bool:
        """Whether every request has ended."""
        return self.ends.keys() >= self._requests.keys()

    def take(self, message: Any) -> None:
        """Take one message of the stream."""
        name = message.infer_response.id
        if name in self.ends:
            raise Fault(f"{name} went on after its end ({self.ends[name]})")
        try:
            delta = decode_text_response(message)
        except ServingError as error:
            self.ends[name] = error.reason
            return
        self.take_delta(name, delta)

    def take_delta(self, name: str, delta: GenerateDelta) -> None:
        """Take one delta of the request called `name`."""
        request = self._requests.get(name)
        if request is None:
            raise Fault(f"an answer to {name!r}, which nobody asked")
        ids = self._ids[name]
        for choice in delta.choices:
            ids[choice.index] += choice.token_ids
        if delta.usage is None:
            return
        self.ends[name] = OK
        told = delta.usage.completion_tokens
        came = sum(map(len, ids.values()))
        if told != came:
            raise Fault(f"{name}: {came} tokens came, {told} were counted")
        for index, tokens in ids.items():
            self._compare(request, index, tokens)

    def outcomes(self) -> list[str]:
        """How each request ended, LEFT where the client did not see it."""
        return [self.ends.get(name, LEFT) for name in self._requests]

    def _compare(self, request: GenerateRequest, index: int, tokens: list[int]) -> None:
        """The simulated engine's tokens follow from the prompt: other ones are somebody else's."""
        known = self._site.known.setdefault((request.prompt or "", index), tokens)
        shorter = min(len(known), len(tokens))
        if known[:shorter] != tokens[:shorter]:
            raise Fault(f"{request.request_id} got tokens of another request")
        if len(tokens) > shorter:
            self._site.known[request.prompt or "", index] = tokens


@asynccontextmanager
async def new_channel(address: str) -> AsyncIterator[RpcChannel]:
    """A connection of its own, closed at the end."""
    channel = RpcChannel(address, rpc_types=rpc_types, keepalive_s=None)
    try:
        yield channel
    finally:
        await channel.close()


def open_stream(channel: RpcChannel, timeout_s: float | None = None) -> ClientStream:
    """A ModelStreamInfer call."""
    return channel.stream(KSERVE, "ModelStreamInfer", timeout_s=timeout_s)


def send(stream: ClientStream, requests: Iterable[GenerateRequest]) -> None:
    """Send requests."""
    for request in requests:
        stream.send(encode_text_request(request, _SELECTION))


async def read(stream: ClientStream, answers: Answers) -> list[str]:
    """Read to the stream's end, which must come after every request's and with OK."""
    async for message in stream:
        answers.take(message)
    if not answers.complete:
        raise Fault(f"the stream ended before {answers.outcomes().count(LEFT)} of its requests")
    return answers.outcomes()


async def converse(
    site: Site, channel: RpcChannel, requests: Sequence[GenerateRequest]
) -> list[str]:
    """Send `requests` on one stream and read all answers."""
    async with open_stream(channel) as stream:
        send(stream, requests)
        stream.half_close()
        return await read(stream, Answers(site, requests))


async def infer(site: Site, rng: Random, message: Any, timeout_s: float | None = None) -> Any:
    """Call ModelInfer on one of the shared connections."""
    channel = rng.choice(site.channels)
    return await channel.unary(KSERVE, "ModelInfer", message, timeout_s=timeout_s)


async def one_stream(site: Site, rng: Random) -> Iterable[str]:
    """One request, streamed."""
    return await converse(site, rng.choice(site.channels), [ask(rng)])


async def whole(site: Site, rng: Random, timeout_s: float | None = None) -> Iterable[str]:
    """One request, answered in one response."""
    request = ask(rng, stream=False)
    answers = Answers(site, [request])
    try:
        message = encode_text_request(request, _SELECTION)
        response = await infer(site, rng, message, timeout_s)
        answers.take_delta(request.request_id, decode_text_response(response))
    except ServingError as error:
        return [error.reason]
    return answers.outcomes()


async def hurried_whole(site: Site, rng: Random) -> Iterable[str]:
    """One request with a deadline that it often misses."""
    return await whole(site, rng, timeout_s=rng.uniform(0.001, 1.0))


async def many(site: Site, rng: Random) -> Iterable[str]:
    """Many requests on one stream, bad ones among them; they harm nobody else."""
    good = [ask(rng) for _ in range(rng.randint(2, 16))]
    bad = [spoiled(rng) for _ in range(rng.randint(0, 4))]
    async with new_channel(site.grpc) as channel, open_stream(channel) as stream:
        send(stream, good)
        for message, _ in bad:
            stream.send(message)
        stream.half_close()
        answers = Answers(site, good)
        await read(stream, answers)
    for message, reason in bad:
        end = answers.ends.get(message.id)
        # What is found out when the prompt is encoded comes after the place in the queue.
        if end not in (reason, Overloaded.reason):
            raise Fault(f"a bad request ended with {end}, not {reason}")
    return answers.outcomes()


async def timed_out(site: Site, rng: Random) -> Iterable[str]:
    """Requests with the `timeout` parameter, which ends each on its own."""
    requests = [ask(rng, timeout_s=rng.uniform(0.001, 1.0)) for _ in range(rng.randint(1, 4))]
    return await converse(site, rng.choice(site.channels), requests)


async def deadline(site: Site, rng: Random) -> Iterable[str]:
    """A stream whose deadline ends it, whatever runs on it."""
    requests = [ask(rng) for _ in range(rng.randint(1, 4))]
    answers = Answers(site, requests)
    channel = rng.choice(site.channels)
    try:
        async with open_stream(channel, timeout_s=rng.uniform(0.001, 1.0)) as stream:
            send(stream, requests)
            stream.half_close()
            return await read(stream, answers)
    except DeadlineExceeded:
        return answers.outcomes()


async def cancelled(site: Site, rng: Random) -> Iterable[str]:
    """A client that cancels its stream after some messages."""
    requests = [ask(rng) for _ in range(rng.randint(1, 6))]
    answers = Answers(site, requests)
    after = rng.randint(0, 30)
    async with open_stream(rng.choice(site.channels)) as stream:
        send(stream, requests)
        try:
            async for message in stream:
                answers.take(message)
                after -= 1
                if after <= 0 or answers.complete:
                    stream.cancel()
        except Cancelled:
            pass
    return answers.outcomes()


async def cancelled_whole(site: Site, rng: Random) -> Iterable[str]:
    """A client that gives up waiting for a whole answer."""
    try:
        async with asyncio.timeout(rng.uniform(0.001, 0.5)):
            return await whole(site, rng)
    except TimeoutError:
        return [LEFT]


async def gone(site: Site, rng: Random) -> Iterable[str]:
    """A client that closes its connection while requests run on it."""
    requests = [ask(rng) for _ in range(rng.randint(1, 8))]
    async with new_channel(site.grpc) as channel, open_stream(channel) as stream:
        send(stream, requests)
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        await channel.close()
    return [LEFT] * len(requests)


async def slow_reader(site: Site, rng: Random) -> Iterable[str]:
    """A client that reads nothing for a while: deltas merge, nothing is lost."""
    requests = [ask(rng) for _ in range(rng.randint(8, 16))]
    async with new_channel(site.grpc) as channel, open_stream(channel) as stream:
        send(stream, requests)
        stream.half_close()
        await asyncio.sleep(rng.uniform(1.0, 3.0))
        return await read(stream, Answers(site, requests))


async def bad(site: Site, rng: Random) -> Iterable[str]:
    """A bad request as a whole, or bytes that are no message on either rpc."""
    match rng.randrange(3):
        case 0:
            message, reason = spoiled(rng, stream=False)
        case 1:
            message, reason = NoMessage(rng), "invalid_request"
        case _:
            return await bad_bytes_on_a_stream(site, rng)
    try:
        await infer(site, rng, message)
    except ServingError as error:
        if error.reason not in (reason, Overloaded.reason):
            raise Fault(f"refused with {error.reason}, not {reason}") from None
        return ["refused"]
    raise Fault("a bad request was answered")


async def bad_bytes_on_a_stream(site: Site, rng: Random) -> Iterable[str]:
    """Bytes that are no message end the stream and the requests on it."""
    requests = [ask(rng) for _ in range(rng.randint(0, 3))]
    answers = Answers(site, requests)
    async with open_stream(rng.choice(site.channels)) as stream:
        send(stream, requests)
        stream.send(NoMessage(rng))
        try:
            await read(stream, answers)
        except ServingError as error:
            if error.reason != "invalid_request":
                raise
            return ["refused", *answers.outcomes()]
    raise Fault("a stream went on after bytes that are no message")


async def burst(site: Site, rng: Random) -> Iterable[str]:
    """More requests at once than may run and wait."""
    counts: Counter[str] = Counter()
    async with new_channel(site.grpc) as channel, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(converse(site, channel, [ask(rng) for _ in range(20)]))
            for _ in range(8)
        ]
    for task in tasks:
        counts.update(task.result())
    return counts.elements()


LEAVING = LATE | {LEFT}
KINDS = (
    Kind("kserve stream", 20, one_stream),
    Kind("kserve whole", 12, whole),
    Kind("kserve many on a stream", 8, many),
    Kind("kserve timeout parameter", 5, timed_out, LATE),
    Kind("kserve deadline of a stream", 5, deadline, LEAVING),
    Kind("kserve deadline of a whole answer", 5, hurried_whole, LATE),
    Kind("kserve cancel", 8, cancelled, GOOD | {LEFT}),
    Kind("kserve cancel of a whole answer", 5, cancelled_whole, GOOD | {LEFT}),
    Kind("kserve connection closed", 5, gone, frozenset({LEFT})),
    Kind("kserve slow reader", 3, slow_reader),
    Kind("kserve bad request", 8, bad, GOOD | {"refused", LEFT}),
)
BURST = Kind("kserve burst", 0, burst)
