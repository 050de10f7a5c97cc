"""The h2 library as a client that does whatever it may, and bytes that are anything at all."""

from typing import Any

import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.unit.http2_peer import ANSWER, REQUEST, TRAILERS, H2Peer, RawPeer, of_stream
from transport.codes import END_HEADERS, HEADERS, PREFACE, ErrorCode
from transport.connection import Limits
from transport.events import ConnectionFailed
from transport.frames import frame

SIZES = st.integers(0, 5000)


class Exchange(RuleBasedStateMachine):
    """What each side has said on each stream must be what the other side has heard."""

    @initialize(window=st.sampled_from([65_535, 70_000, 2**20]))
    def begin(self, window: int) -> None:
        self.peer = H2Peer(Limits(stream_window=window, connection_window=max(window, 100_000)))
        self.peer.exchange()
        self.asked: dict[int, bytes] = {}
        self.answered: dict[int, bytes] = {}
        self.open: list[int] = []
        self.half: set[int] = set()

    @rule()
    def ask(self) -> None:
        if len(self.open) < 20:
            stream_id = self.peer.open()
            self.asked[stream_id] = self.answered[stream_id] = b""
            self.open.append(stream_id)
            self.peer.exchange()
            self.peer.server.streams.respond(stream_id, ANSWER)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=SIZES)
    def send(self, data: Any, size: int) -> None:
        stream_id = data.draw(st.sampled_from(self.open))
        if stream_id not in self.half:
            room = self.peer.client.local_flow_control_window(stream_id)
            part = bytes([stream_id % 251]) * min(size, room, 16_384)
            self.peer.client.send_data(stream_id, part)
            self.asked[stream_id] += part

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def half_close(self, data: Any) -> None:
        stream_id = data.draw(st.sampled_from(self.open))
        if stream_id not in self.half:
            self.half.add(stream_id)
            self.peer.client.end_stream(stream_id)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=SIZES)
    def answer(self, data: Any, size: int) -> None:
        stream_id = data.draw(st.sampled_from(self.open))
        part = bytes([stream_id % 249]) * size
        if part:
            self.peer.server.streams.send(stream_id, part)
            self.answered[stream_id] += part

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        stream_id = data.draw(st.sampled_from(self.open))
        self.settle()
        self.peer.server.streams.end(stream_id, TRAILERS)
        self.settle()
        self.open.remove(stream_id)
        heard = b"".join(
            it.data
            for it in self.peer.seen
            if isinstance(it, h2.events.DataReceived) and it.stream_id == stream_id
        )
        assert heard == self.answered[stream_id]
        assert self.peer.server.streams.get(stream_id) is None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        stream_id = data.draw(st.sampled_from(self.open))
        self.settle()
        self.peer.client.reset_stream(stream_id, ErrorCode.CANCEL)
        self.open.remove(stream_id)
        self.settle()
        assert of_stream(self.peer.events, stream_id)[2] == ErrorCode.CANCEL

    @rule()
    def ping(self) -> None:
        self.peer.client.ping(b"12345678")
        self.settle()

    @rule(size=st.sampled_from([16_384, 100, 65_535, 500_000]))
    def set_window(self, size: int) -> None:
        self.settle()
        self.peer.client.update_settings({4: size})
        self.settle()

    def settle(self) -> None:
        """Let both sides say all they have, and the client take all it was given."""
        taken = len(self.peer.seen)
        self.peer.exchange()
        while taken < len(self.peer.seen):
            for event in self.peer.seen[taken:]:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.reopen(event.flow_controlled_length, event.stream_id)
            taken = len(self.peer.seen)
            self.peer.exchange()

    def reopen(self, size: int, stream_id: int) -> None:
        """Not by the library's own policy: it gives nothing back after a window has shrunk."""
        self.peer.client.increment_flow_control_window(size)
        if stream_id in self.open:
            self.peer.client.increment_flow_control_window(size, stream_id)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "peer"):
            return
        self.settle()
        assert not any(isinstance(it, ConnectionFailed) for it in self.peer.events)
        for stream_id in self.open:
            data, ended, reset = of_stream(self.peer.events, stream_id)
            assert data == self.asked[stream_id]
            assert ended == (stream_id in self.half)
            assert reset is None
        assert len(self.peer.server.streams) == len(self.open)


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

WHOLE = st.binary(max_size=300)
FRAMES = st.builds(
    frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=60),
)


@given(st.lists(WHOLE | FRAMES, max_size=30), st.booleans(), st.integers(0, 3))
@settings(max_examples=600, deadline=None)
def test_any_bytes_end_in_events_or_in_one_failure(
    parts: list[bytes], greet: bool, streams: int
) -> None:
    peer = RawPeer(greet=greet)
    for number in range(streams if greet else 0):
        peer.request(2 * number + 1)
        peer.connection.streams.respond(2 * number + 1, ANSWER)
    for part in parts:
        peer.send(part)
        peer.connection.streams.send(1, b"x" * 100)
    failures = [it for it in peer.events if isinstance(it, ConnectionFailed)]
    assert len(failures) <= 1
    if failures:
        assert peer.events[-1] is failures[0]
        assert len(peer.connection.streams) == 0
    peer.answers()


@given(st.lists(st.tuples(st.sampled_from([n for n, _ in REQUEST]) | st.text(max_size=8),
                          st.text(max_size=20)), max_size=8))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_headers_begin_a_request_or_reset_it(headers: list[tuple[str, str]]) -> None:
    peer = RawPeer()
    block = peer.block([(name or "x", value) for name, value in headers])
    peer.send(frame(HEADERS, END_HEADERS, 1, block))
    assert peer.failure is None
    assert len(peer.connection.streams) in (0, 1)


@pytest.mark.parametrize("size", [1, 3, 7, 9, 100, 10_000])
def test_where_bytes_are_cut_changes_nothing(size: int) -> None:
    whole, cut = RawPeer(greet=False), RawPeer(greet=False)
    sent = PREFACE + frame(4, 0, 0)
    for number in range(5):
        sent += frame(HEADERS, END_HEADERS, 2 * number + 1, whole.block())
        sent += frame(0, 1, 2 * number + 1, bytes(3000))
    whole.send(sent)
    for at in range(0, len(sent), size):
        cut.send(sent[at : at + size])
    assert cut.events == whole.events
    assert cut.answers() == whole.answers()
