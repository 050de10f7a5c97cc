"""What the load client is told to do, and what it reports."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from wire import inference_pb2 as pb

GRPC_STREAM = "grpc-stream"
SSE = "sse"
GRPC_UNARY = "grpc-unary"
HTTP_UNARY = "http-unary"


class Case(msgspec.Struct, kw_only=True, frozen=True):
    """One row of the report: streams that run all at once, or `requests`, `streams` at a time."""

    name: str
    kind: str
    streams: int = 1
    connections: int = 1
    tokens: int = 1
    requests: int = 0
    prompt_words: int = 100
    native: bool = False


class Job(Case, kw_only=True, frozen=True):
    """A case on one server, the processes of which are `pids`.

    With `word` every token is the id `word_id`, whose text is `word`: how often it stands in a
    message is how many tokens the message brings. Without it a message is a token.
    """

    address: str
    model: str
    word: str | None = None
    word_id: int | None = None
    stream_input: str = "stream"
    sampling_input: bool = True
    pids: dict[str, int] = {}


class Spread(msgspec.Struct, frozen=True):
    """Half of the values are not above `p50`, 99 of 100 not above `p99`."""

    p50: float
    p99: float


class Outcome(msgspec.Struct, kw_only=True):
    """What one load came to.

    `cpu_us` is per process and token, between the first token of the last stream and the end of
    the first; per request for unary ones. `cpu_us_whole` has the admission of the streams in it,
    too. `lag_ms` is how far tokens came behind their stream's own steady pace, `gap_ms` the time
    between two messages of a stream.
    """

    expected: int
    tokens: int
    messages: int
    seconds: float
    cpu_us: dict[str, float]
    cpu_us_whole: dict[str, float]
    first_ms: Spread
    lag_ms: Spread | None = None
    gap_ms: Spread | None = None


def spread(values: Sequence[float]) -> Spread:
    """Return the percentiles of values in seconds, in milliseconds."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(
        p50=round(ordered[last // 2] * 1e3, 3), p99=round(ordered[int(last * 0.99)] * 1e3, 3)
    )


def prompt(job: Job, number: int) -> str:
    """Return a prompt that no other request of the load has."""
    return f"{number} " + "word " * job.prompt_words


def sampling(job: Job) -> dict[str, Any]:
    """Return the sampling parameters of one request."""
    found: dict[str, Any] = {"max_tokens": job.tokens, "ignore_eos": True, "temperature": 0}
    if job.word_id is not None:
        found["allowed_token_ids"] = [job.word_id]
    return found


def grpc_request(job: Job, number: int) -> Any:
    """Return a KServe request message."""
    request = pb.ModelInferRequest(model_name=job.model, id=str(number))
    texts = {"text_input": prompt(job, number)}
    if job.sampling_input:
        texts["sampling_parameters"] = json.dumps(sampling(job))
    for name, text in texts.items():
        value = text.encode()
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    if job.kind == GRPC_STREAM:
        request.inputs.add(name=job.stream_input, datatype="BOOL", shape=[1])
        request.raw_input_contents.append(b"\1")
    return request


def http_body(job: Job, number: int) -> bytes:
    """Return a chat completion's body."""
    body = {
        "model": job.model,
        "messages": [{"role": "user", "content": prompt(job, number)}],
        "stream": job.kind == SSE,
        **sampling(job),
    }
    return json.dumps(body).encode()
