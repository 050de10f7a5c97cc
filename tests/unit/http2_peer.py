"""A client of transport.connection for tests: the h2 library, or frames made by hand."""

import struct
from collections.abc import Sequence

import h2.config
import h2.connection
import h2.events
import hpack

from transport.codes import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
)
from transport.connection import Connection, Limits
from transport.events import ConnectionFailed, DataReceived, Event, RequestStarted, StreamReset
from transport.frames import FrameReader, frame
from transport.header_blocks import encode_headers

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
ANSWER = encode_headers([(":status", "200"), ("content-type", "application/grpc")])
TRAILERS = encode_headers([("grpc-status", "0")])


class RawPeer:
    """Sends what it is told, right or wrong; reads what comes back as frames."""

    def __init__(self, limits: Limits | None = None, *, greet: bool = True) -> None:
        self.connection = Connection(limits or Limits())
        self.now = 0.0
        self.events: list[Event] = []
        self._encoder = hpack.Encoder()
        self._frames = FrameReader(2**24 - 1)
        self._frames.begun = True
        if greet:
            self.send(PREFACE, frame(SETTINGS, 0, 0))

    def send(self, *parts: bytes) -> list[Event]:
        """Deliver bytes; returns the events that they made."""
        events = self.connection.receive(b"".join(parts), self.now)
        self.events += events
        return events

    def answers(self) -> list[tuple[int, int, int, bytes]]:
        """What the server has sent since: (type, flags, stream, payload)."""
        return list(self._frames.feed(self.connection.take()))

    def kinds(self) -> list[int]:
        """The types of the frames that the server has sent since."""
        return [kind for kind, *_ in self.answers()]

    def block(self, headers: Sequence[tuple[str, str]] = REQUEST) -> bytes:
        """An encoded header block."""
        encoded: bytes = self._encoder.encode(headers)
        return encoded

    def request(
        self,
        stream_id: int,
        headers: Sequence[tuple[str, str]] = REQUEST,
        flags: int = END_HEADERS,
    ) -> list[Event]:
        """Begin a stream."""
        return self.send(frame(HEADERS, flags, stream_id, self.block(headers)))

    def data(self, stream_id: int, data: bytes = b"", *, end: bool = False) -> list[Event]:
        """Send DATA."""
        return self.send(frame(DATA, END_STREAM if end else 0, stream_id, data))

    @property
    def failure(self) -> int | None:
        """The code that the connection ended with."""
        return next((it.code for it in self.events if isinstance(it, ConnectionFailed)), None)

    def reset_code(self, stream_id: int) -> int | None:
        """The code that the server has told for a stream, if it reset it."""
        for kind, _, stream, payload in self.answers():
            if kind == 3 and stream == stream_id:
                code: int = struct.unpack(">L", payload)[0]
                return code
        return None


class H2Peer:
    """The h2 library as the client; bytes go to and fro in `exchange`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.server = Connection(limits or Limits())
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.events: list[Event] = []
        self.seen: list[h2.events.Event] = []

    def exchange(self) -> None:
        """Pass on until neither side has anything to say."""
        while True:
            out = self.client.data_to_send()
            if out:
                self.events += self.server.receive(out, 0.0)
            back = self.server.take()
            if back:
                self.seen += self.client.receive_data(back)
            if not out and not back:
                return

    def open(self, *, end: bool = False) -> int:
        """Begin a request; returns its stream."""
        stream_id: int = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, REQUEST, end_stream=end)
        return stream_id


def of_stream(events: Sequence[Event], stream_id: int) -> tuple[bytes, bool, int | None]:
    """What the server has heard of a stream: its data, whether it ended, and its reset."""
    data, ended, reset = b"", False, None
    for event in events:
        match event:
            case RequestStarted(number, _, end) if number == stream_id:
                ended = ended or end
            case DataReceived(number, part, end) if number == stream_id:
                data += part
                ended = ended or end
            case StreamReset(number, code) if number == stream_id:
                reset = code
    return data, ended, reset
