"""Which loads the suite runs, in full and quickly."""

from collections.abc import Iterator

from benchmarks.suite.jobs import GRPC_STREAM, GRPC_UNARY, HTTP_UNARY, SSE, Case

INTERVAL_S = 0.02
SATURATED_INTERVAL_S = 0.002
# The simulator's step without prompts; see worker/sim_timing.py.
STEP_MS, STEP_MS_PER_SEQUENCE, STEP_MS_PER_HELD_TOKEN = 6.0, 0.015, 20e-6


def speedup(streams: int, tokens: int, interval_s: float) -> float:
    """Return the simulator's speed at which `streams` sequences take a step per interval."""
    held = streams * (100 + tokens / 2)
    step_ms = STEP_MS + STEP_MS_PER_SEQUENCE * streams + STEP_MS_PER_HELD_TOKEN * held
    return step_ms / 1e3 / interval_s


def paced(streams: int, *, tokens: int) -> Iterator[Case]:
    """Streams of 50 tokens a second."""
    shapes = sorted({1, min(16, streams), streams})
    for connections in shapes:
        yield Case(
            name=f"gRPC, {streams} streams on {connections}",
            kind=GRPC_STREAM,
            streams=streams,
            connections=connections,
            tokens=tokens,
        )
    yield Case(name=f"SSE, {streams} streams", kind=SSE, streams=streams, tokens=tokens)


def real_engine(*, tokens: int) -> Iterator[Case]:
    """Streams at the pace of a real engine on this machine."""
    for streams in (1, 16):
        yield Case(
            name=f"SSE, {streams} streams, real engine",
            kind=SSE,
            streams=streams,
            tokens=tokens,
            prompt_words=20,
        )


def saturated(*, tokens: int) -> Iterator[Case]:
    """256 streams, each of ten times the pace: more than this machine carries one by one."""
    yield Case(
        name="gRPC saturated, 256 streams on 16",
        kind=GRPC_STREAM,
        streams=256,
        connections=16,
        tokens=tokens,
        native=True,
    )
    yield Case(name="SSE saturated, 256 streams", kind=SSE, streams=256, tokens=tokens)


def unary(*, requests: int) -> Iterator[Case]:
    """Whole answers of one token, from an engine that takes no time."""
    for name, kind in (("gRPC", GRPC_UNARY), ("HTTP", HTTP_UNARY)):
        yield Case(name=f"{name} unary, 100 words", kind=kind, streams=4, requests=requests)
    yield Case(
        name="gRPC unary, 4000 words",
        kind=GRPC_UNARY,
        streams=1,
        requests=requests // 10,
        prompt_words=4000,
    )


def first_token(*, requests: int) -> Iterator[Case]:
    """One whole answer after the other: its latency is what everything but the engine adds."""
    for name, kind in (("gRPC", GRPC_UNARY), ("HTTP", HTTP_UNARY)):
        yield Case(name=f"{name}, first token alone", kind=kind, streams=1, requests=requests)
