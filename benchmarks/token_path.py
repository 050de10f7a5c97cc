"""CPU of the front door per token without any I/O: from a worker's step frame to gRPC's bytes.

One process, no sockets: frames are read, decoded to text, and written as HTTP/2 frames of the
native transport, for streams that share a few connections. What the kernel and the event loop
cost is not in it.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

from runtime.request_record import RequestRecord
from runtime.rpc import CallInfo
from server.generation import Generation
from server.kserve_infer import Asked, InferStream
from server.slots import Slots
from server.text.codec import TextCodec
from transport.codes import END_HEADERS, HEADERS, PREFACE
from transport.connection import Connection, Limits
from transport.frames import frame, settings_frame, window_frame
from transport.grpc_codec import IDENTITY, PLAIN, MessageReader
from transport.header_blocks import encode_headers
from transport.server_call import StreamCall
from transport.streams import Streams
from wire.cards import ModelCard
from wire.frames import FrameWriter, read_frame
from wire.generate import GenerateRequest
from wire.sampling import Sampling
from wire.text_inputs import OutputSelection
from wire.tokens import TokenDelta
from worker.models import resolve_model

_REQUEST = encode_headers(
    [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "x")]
)


class _Owner:
    """Hears of a generation's end, and has nothing to free."""

    def release(self, *_: Any, **__: Any) -> None:
        """Nothing to free."""

    def first_token(self, *_: Any) -> None:
        """Nobody to tell."""

    def lost(self, *_: Any) -> bool:
        """No other worker."""
        return False


class _Link:
    """A connection without a socket (a transport.server_call.Link)."""

    def __init__(self) -> None:
        self.connection = Connection(Limits())
        self.connection.receive(PREFACE + settings_frame({4: 2**31 - 1}), 0.0)
        self.connection.receive(window_frame(0, 2**30), 0.0)
        self.streams: Streams = self.connection.streams
        self.paused = False
        self.bytes = 0

    def flush_soon(self) -> None:
        """Later: `flush` comes after each step."""

    def flush(self) -> None:
        """Count what would be written."""
        self.bytes += len(self.connection.take())

    def began(self, call: Any) -> None:
        """Nobody counts."""

    def ended(self, call: Any, code: Any) -> None:
        """Nobody counts."""


def _streams(codec: TextCodec, count: int, links: list[_Link]) -> dict[int, Generation]:
    """Begin `count` streams, each with one request; returns them by slot."""
    made = {}
    for slot in range(count):
        link, stream_id = links[slot % len(links)], slot // len(links) * 2 + 1
        link.connection.receive(frame(HEADERS, END_HEADERS, stream_id, _REQUEST), 0.0)
        info = CallInfo(method="ModelStreamInfer")
        call = StreamCall(link, stream_id, info, MessageReader(IDENTITY, -1), PLAIN)
        request = GenerateRequest(request_id=str(slot), model="m", sampling=Sampling(), prompt="x")
        record = RequestRecord(request_id=str(slot), endpoint="ModelStreamInfer", started_s=0.0)
        record.admitted("m")
        generation = Generation(request, _Owner(), record)
        generation.begin(codec, codec.encode_request(request))
        plane: Any = None
        InferStream(call, plane).watch(generation, Asked(request, OutputSelection(), {}))
        made[slot] = generation
    return made


def _frames(slots: list[int], steps: int) -> list[Any]:
    """Return step frames of one token for each slot."""
    rng = random.Random(1)
    writer = FrameWriter()
    found = []
    for _ in range(steps):
        for slot in slots:
            writer.add(slot, TokenDelta(token_ids=[rng.randrange(300, 40_000)]))
        found.append(writer.take("m"))
    return found


def _us_per_token(run: Callable[[], None], tokens: int) -> float:
    """The best of five."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best / tokens * 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--streams", type=int, default=256, help="concurrent streams")
    parser.add_argument("--connections", type=int, default=16, help="that they share")
    parser.add_argument("--steps", type=int, default=100, help="engine steps per round")


def run(options: argparse.Namespace) -> int:
    """Measure and print one JSON object."""
    folder = resolve_model("smollm2", cache_dir=None, progress=lambda _: None).path
    card = ModelCard(
        name="m", path=str(folder), context_length=2048, vocab_size=49_152, block_size=16
    )
    links = [_Link() for _ in range(options.connections)]
    sinks = _streams(TextCodec(card), options.streams, links)
    frames = _frames(list(sinks), options.steps)
    slots = Slots("w")
    for slot, sink in sinks.items():
        slots.put(slot, sink)

    def whole() -> None:
        for each in frames:
            slots.deliver(each)
            for link in links:
                link.flush()

    def reading() -> None:
        for each in frames:
            read_frame(each)

    tokens = options.streams * options.steps
    report = {
        "streams": options.streams,
        "connections": options.connections,
        "frame_us_per_token": round(_us_per_token(reading, tokens), 2),
        "front_door_us_per_token": round(_us_per_token(whole, tokens), 2),
    }
    print(json.dumps(report, indent=2))
    return 0
