"""Flow control both ways, one test for each rule of RFC 9113, sections 5.2 and 6.9."""

import struct

from tests.unit.http2_peer import ANSWER, TRAILERS, RawPeer, of_stream
from transport.codes import (
    DATA,
    HEADERS,
    PADDED,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
)
from transport.connection import Limits
from transport.frames import frame, settings_frame, window_frame

PROTOCOL, FLOW, SIZE = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
)


def test_an_answer_keeps_to_the_streams_window() -> None:
    peer = RawPeer(greet=False)
    peer.send(PREFACE, settings_frame({4: 10}))
    peer.request(1)
    streams = peer.connection.streams
    streams.respond(1, ANSWER)
    peer.answers()
    assert not streams.send(1, b"0123456789ab")
    streams.end(1, TRAILERS)
    assert [(kind, payload) for kind, _, _, payload in peer.answers()] == [(DATA, b"0123456789")]
    assert streams.queued(1) == 2
    peer.send(window_frame(1, 1))
    assert [payload for *_, payload in peer.answers()] == [b"a"]
    peer.send(window_frame(1, 1))
    assert peer.kinds() == [DATA, HEADERS, RST_STREAM]


def test_answers_share_the_connections_window_in_turn() -> None:
    peer = RawPeer(greet=False)
    peer.send(PREFACE, settings_frame({4: 1_000_000}))
    streams = peer.connection.streams
    for stream_id in (1, 3):
        peer.request(stream_id)
        streams.respond(stream_id, ANSWER)
        streams.send(stream_id, bytes(100_000))
    peer.answers()
    peer.send(window_frame(0, 40_000))
    served = [stream for kind, _, stream, _ in peer.answers() if kind == DATA]
    assert served == [1, 3, 1]
    peer.send(window_frame(0, 1_000_000))
    assert streams.queued(1) == streams.queued(3) == 0


def test_a_setting_changes_the_windows_of_open_streams() -> None:
    peer = RawPeer()
    peer.request(1)
    streams = peer.connection.streams
    streams.respond(1, ANSWER)
    streams.send(1, bytes(65_535))
    peer.send(window_frame(0, 100_000), settings_frame({4: 100}))
    assert not streams.send(1, b"x")
    peer.answers()
    peer.send(settings_frame({4: 65_536}))
    assert DATA in peer.kinds()


def test_windows_that_overflow_are_errors() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(window_frame(1, 2**31 - 1))
    assert peer.reset_code(1) == FLOW
    assert peer.failure is None
    peer.send(window_frame(0, 2**31 - 1))
    assert peer.failure == FLOW


def test_a_setting_that_makes_a_window_overflow_is_an_error() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(window_frame(1, 2**31 - 1 - 65_535), settings_frame({4: 65_536}))
    assert peer.failure == FLOW


def test_window_updates_of_nothing_are_errors() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(window_frame(1, 0))
    assert peer.reset_code(1) == PROTOCOL
    peer.send(window_frame(0, 0))
    assert peer.failure == PROTOCOL


def test_more_than_the_streams_window_resets_the_stream() -> None:
    peer = RawPeer(Limits(stream_window=65_535))
    peer.request(1)
    peer.send(settings_frame({}))
    for _ in range(3):
        peer.data(1, bytes(30_000))
    # Half of a window taken opens it again; what was in flight before does not count.
    assert peer.failure is None
    other = RawPeer(Limits(stream_window=65_535, max_frame_size=100_000))
    other.request(1)
    other.data(1, bytes(70_000))
    assert other.reset_code(1) == FLOW


def test_more_than_the_connections_window_ends_the_connection() -> None:
    peer = RawPeer(Limits(stream_window=10**6, connection_window=70_000, max_frame_size=100_000))
    peer.request(1)
    peer.data(1, bytes(70_001))
    assert peer.failure == FLOW


def test_what_was_taken_opens_the_windows_again() -> None:
    peer = RawPeer(Limits(stream_window=65_535, connection_window=131_070))
    peer.request(1)
    peer.answers()
    for _ in range(100):
        peer.data(1, bytes(16_000))
    total = {0: 0, 1: 0}
    for kind, _, stream, payload in peer.answers():
        if kind == WINDOW_UPDATE:
            total[stream] += struct.unpack(">L", payload)[0]
    assert total[1] > 1_600_000 - 65_535
    assert total[0] > 1_600_000 - 131_070
    assert peer.failure is None


def test_padding_counts_for_the_window_and_is_no_data() -> None:
    peer = RawPeer(Limits(stream_window=65_535))
    peer.request(1)
    peer.send(frame(DATA, PADDED, 1, b"\x05" + b"abc" + bytes(5)))
    assert of_stream(peer.events, 1)[0] == b"abc"
    peer.answers()
    for _ in range(2000):
        peer.send(frame(DATA, PADDED, 1, b"\xff" + b"a" + bytes(255)))
    assert WINDOW_UPDATE in peer.kinds()
    assert peer.failure is None
