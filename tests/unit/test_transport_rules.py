"""Rules of HTTP/2 for a server, one test each; transport_requirements.yaml has their sources."""

import struct

import pytest

from tests.unit.http2_peer import ANSWER, REQUEST, TRAILERS, H2Peer, RawPeer, of_stream
from transport.client_connection import ClientConnection
from transport.codes import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
)
from transport.connection import Limits
from transport.events import DataReceived, PingAnswered, RequestStarted, StreamReset
from transport.frames import frame, ping_frame, reset_frame, settings_frame, window_frame
from transport.header_blocks import encode_headers

PROTOCOL, FLOW, SIZE = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
)


# --------------------------------------------------------------------- 3.4 the preface
def test_what_is_no_preface_ends_the_connection() -> None:
    peer = RawPeer(greet=False)
    peer.send(b"GET / HTTP/1.1\r\n\r\n")
    assert peer.failure == PROTOCOL


def test_a_preface_may_come_byte_by_byte() -> None:
    peer = RawPeer(greet=False)
    for byte in PREFACE + frame(SETTINGS, 0, 0):
        peer.send(bytes([byte]))
    assert peer.failure is None
    assert peer.connection.begun
    assert (SETTINGS, ACK, 0, b"") in peer.answers()


def test_our_settings_go_first() -> None:
    peer = RawPeer(Limits(max_streams=7), greet=False)
    kind, flags, stream, payload = peer.answers()[0]
    assert (kind, flags, stream) == (SETTINGS, 0, 0)
    assert dict(struct.iter_unpack(">HL", payload))[3] == 7


# --------------------------------------------------------------------- 4 frames
def test_a_frame_that_is_too_long_ends_the_connection() -> None:
    peer = RawPeer(Limits(max_frame_size=16_384))
    peer.request(1)
    peer.data(1, bytes(16_385))
    assert peer.failure == SIZE


def test_unknown_frames_and_flags_and_the_reserved_bit_are_ignored() -> None:
    peer = RawPeer()
    peer.send(frame(0xBE, 0xFF, 5, b"x"))
    block = peer.block()
    peer.send(frame(HEADERS, END_HEADERS | 0x42, 1 | 2**31, block))
    assert isinstance(peer.events[-1], RequestStarted)
    assert peer.failure is None


def test_frames_may_be_cut_anywhere() -> None:
    peer = RawPeer()
    for byte in frame(HEADERS, END_HEADERS, 1, peer.block()) + frame(DATA, END_STREAM, 1, b"abc"):
        peer.send(bytes([byte]))
    assert of_stream(peer.events, 1) == (b"abc", True, None)


def test_a_block_that_cannot_be_decoded_ends_the_connection() -> None:
    peer = RawPeer()
    peer.send(frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"))
    assert peer.failure == ErrorCode.COMPRESSION_ERROR


def test_headers_over_the_limit_end_the_connection() -> None:
    peer = RawPeer(Limits(max_header_bytes=1000))
    peer.request(1, [*REQUEST, ("x", "y" * 2000)])
    assert peer.failure == ErrorCode.ENHANCE_YOUR_CALM


# --------------------------------------------------------------------- 5 streams
@pytest.mark.parametrize("stream_id", [0, 2])
def test_a_client_opens_odd_streams(stream_id: int) -> None:
    peer = RawPeer()
    peer.request(stream_id)
    assert peer.failure == PROTOCOL


def test_a_client_that_has_used_all_stream_ids_begins_no_more() -> None:
    client = ClientConnection(Limits(), first_id=MAX_STREAM_ID - 2)
    client.receive(settings_frame({}), 0.0)
    for stream_id in (MAX_STREAM_ID - 2, MAX_STREAM_ID):
        assert client.takes_more
        assert client.request(b"") == stream_id
    assert client.exhausted
    assert not client.takes_more


@pytest.mark.parametrize(
    "idle",
    [frame(DATA, 0, 5, b"x"), reset_frame(5, 8), window_frame(5, 1), frame(DATA, 0, 0, b"x")],
)
def test_a_frame_of_a_stream_that_has_not_begun_ends_the_connection(idle: bytes) -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(idle)
    assert peer.failure == PROTOCOL


def test_data_behind_the_end_resets_the_stream() -> None:
    peer = RawPeer()
    peer.request(1, flags=END_HEADERS | END_STREAM)
    peer.data(1, b"x")
    assert peer.reset_code(1) == ErrorCode.STREAM_CLOSED
    assert peer.failure is None


def test_headers_behind_the_end_reset_the_stream() -> None:
    peer = RawPeer()
    peer.request(1, flags=END_HEADERS | END_STREAM)
    peer.request(1, [("x", "y")], END_HEADERS | END_STREAM)
    assert peer.reset_code(1) == ErrorCode.STREAM_CLOSED


def test_what_comes_for_a_stream_that_is_over_is_ignored() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.connection.streams.reset(1, ErrorCode.CANCEL)
    before = len(peer.events)
    peer.data(1, b"x")
    peer.send(window_frame(1, 10), reset_frame(1, 8), frame(PRIORITY, 0, 1, bytes(5)))
    peer.request(1, [("x", "y")], END_HEADERS | END_STREAM)
    assert peer.failure is None
    assert len(peer.events) == before
    assert isinstance(peer.request(3)[0], RequestStarted)


def test_streams_over_the_limit_are_refused_and_others_served() -> None:
    peer = RawPeer(Limits(max_streams=1))
    peer.request(1)
    peer.request(3)
    assert peer.reset_code(3) == ErrorCode.REFUSED_STREAM
    peer.send(reset_frame(1, 8))
    assert isinstance(peer.request(5)[0], RequestStarted)


def test_a_whole_answer_before_the_request_ended_stops_the_rest() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.connection.streams.end(1, ANSWER)
    assert peer.reset_code(1) == ErrorCode.NO_ERROR
    assert peer.connection.streams.get(1) is None


def test_trailers_end_a_request() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.data(1, b"abc")
    peer.request(1, [("x", "y")], END_HEADERS | END_STREAM)
    assert of_stream(peer.events, 1) == (b"abc", True, None)


def test_trailers_that_end_nothing_reset_the_stream() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.request(1, [("x", "y")])
    assert peer.reset_code(1) == PROTOCOL


# --------------------------------------------------------------------- 6 each frame's own rules
@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_more_padding_than_payload_ends_the_connection(kind: int) -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(frame(kind, PADDED | END_HEADERS, 1, b"\x05abcd"))
    assert peer.failure == PROTOCOL


def test_headers_may_be_padded_and_have_a_priority_that_is_ignored() -> None:
    peer = RawPeer()
    payload = b"\x03" + bytes(5) + peer.block() + bytes(3)
    peer.send(frame(HEADERS, PADDED | WITH_PRIORITY | END_HEADERS, 1, payload))
    assert isinstance(peer.events[-1], RequestStarted)
    peer.send(frame(HEADERS, WITH_PRIORITY | END_HEADERS, 3, b"abc"))
    assert peer.failure == SIZE


def test_a_block_may_be_continued() -> None:
    peer = RawPeer()
    block = peer.block()
    peer.send(frame(HEADERS, END_STREAM, 1, block[:3]), frame(CONTINUATION, 0, 1, block[3:7]))
    assert peer.events[1:] == []
    peer.send(frame(CONTINUATION, END_HEADERS, 1, block[7:]))
    assert of_stream(peer.events, 1) == (b"", True, None)


@pytest.mark.parametrize(
    "between",
    [
        frame(DATA, 0, 1, b"x"),
        ping_frame(bytes(8)),
        frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(HEADERS, END_HEADERS, 3, b""),
        frame(0xBE, 0, 0, b""),
    ],
)
def test_nothing_may_come_between_the_parts_of_a_block(between: bytes) -> None:
    peer = RawPeer()
    peer.send(frame(HEADERS, 0, 1, peer.block()), between)
    assert peer.failure == PROTOCOL


def test_a_continuation_of_nothing_ends_the_connection() -> None:
    peer = RawPeer()
    peer.send(frame(CONTINUATION, END_HEADERS, 1, b""))
    assert peer.failure == PROTOCOL


def test_a_priority_has_five_bytes_and_a_stream() -> None:
    peer = RawPeer()
    peer.send(frame(PRIORITY, 0, 1, bytes(5)))
    assert peer.failure is None
    peer.send(frame(PRIORITY, 0, 1, bytes(4)))
    assert peer.reset_code(1) == SIZE
    peer.send(frame(PRIORITY, 0, 0, bytes(5)))
    assert peer.failure == PROTOCOL


def test_a_reset_ends_its_stream() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.connection.streams.respond(1, ANSWER)
    assert peer.send(reset_frame(1, 8)) == [StreamReset(1, 8)]
    assert peer.connection.streams.get(1) is None
    peer.answers()
    assert peer.connection.streams.send(1, b"x")
    assert peer.answers() == []
    peer.send(frame(RST_STREAM, 0, 1, bytes(3)))
    assert peer.failure == SIZE


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(SETTINGS, 0, 1), PROTOCOL),
        (frame(SETTINGS, 0, 0, bytes(5)), SIZE),
        (frame(SETTINGS, ACK, 0, bytes(6)), SIZE),
        (settings_frame({2: 2}), PROTOCOL),
        (settings_frame({4: 2**31}), FLOW),
        (settings_frame({5: 16_383}), PROTOCOL),
        (settings_frame({5: 2**24}), PROTOCOL),
        (frame(PING, 0, 1, bytes(8)), PROTOCOL),
        (frame(PING, 0, 0, bytes(7)), SIZE),
        (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
        (frame(GOAWAY, 0, 0, bytes(7)), SIZE),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
        (frame(PUSH_PROMISE, 0, 1, bytes(4)), PROTOCOL),
    ],
)
def test_frames_of_the_connection_that_are_wrong_end_it(wrong: bytes, code: ErrorCode) -> None:
    peer = RawPeer()
    peer.send(wrong)
    assert peer.failure == code
    assert peer.kinds()[-1] == GOAWAY
    assert peer.request(1) == []


def test_settings_and_pings_are_acknowledged_and_unknown_settings_ignored() -> None:
    peer = RawPeer()
    peer.answers()
    peer.send(settings_frame({0x99: 1, 6: 5000}), ping_frame(b"abcdefgh"))
    assert peer.answers() == [(SETTINGS, ACK, 0, b""), (PING, ACK, 0, b"abcdefgh")]
    assert peer.send(ping_frame(b"12345678", ACK)) == [PingAnswered(b"12345678")]


def test_a_setting_allows_longer_frames() -> None:
    peer = RawPeer()
    peer.request(1)
    streams = peer.connection.streams
    peer.send(settings_frame({4: 100_000}), window_frame(0, 100_000))
    streams.respond(1, ANSWER)
    peer.answers()
    streams.send(1, bytes(40_000))
    assert [len(payload) for *_, payload in peer.answers()] == [16_384, 16_384, 7_232]
    peer.send(settings_frame({5: 50_000}))
    peer.answers()
    streams.send(1, bytes(40_000))
    assert [len(payload) for *_, payload in peer.answers()] == [40_000]


def test_after_goaway_what_has_begun_goes_on_and_nothing_else_begins() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.connection.announce_end()
    peer.request(3)
    peer.connection.refuse_new()
    last = [struct.unpack(">L", it[3][:4])[0] for it in peer.answers() if it[0] == GOAWAY]
    assert last == [2**31 - 1, 3]
    assert peer.request(5) == []
    assert peer.data(3, b"x") == [DataReceived(3, b"x", False)]
    assert peer.failure is None


def test_a_client_may_say_goaway_and_go_on_reading() -> None:
    peer = RawPeer()
    peer.request(1)
    peer.send(frame(GOAWAY, 0, 0, bytes(8)))
    peer.connection.streams.respond(1, ANSWER)
    assert HEADERS in peer.kinds()


# --------------------------------------------------------------------- 8 requests
def without(name: str) -> list[tuple[str, str]]:
    return [it for it in REQUEST if it[0] != name]


@pytest.mark.parametrize(
    "headers",
    [
        without(":method"),
        without(":scheme"),
        without(":path"),
        [*without(":path"), (":path", "")],
        [*REQUEST, (":path", "/late")],
        [("te", "trailers"), *REQUEST],
        [(":status", "200"), *REQUEST],
        [(":method", "POST"), *REQUEST],
        [*REQUEST, ("Upper", "x")],
        [*REQUEST, ("connection", "close")],
        [*REQUEST, ("transfer-encoding", "chunked")],
        [*without("te"), ("te", "gzip")],
        [*REQUEST, ("a b", "x")],
        [*REQUEST, ("x", "a\nb")],
        [*REQUEST, ("x", " a")],
        [*REQUEST, ("content-length", "x")],
        [*REQUEST, ("content-length", "1"), ("content-length", "2")],
    ],
)
def test_a_malformed_request_is_reset(headers: list[tuple[str, str]]) -> None:
    peer = RawPeer()
    assert peer.request(1, headers) == []
    assert peer.reset_code(1) == PROTOCOL
    assert isinstance(peer.request(3)[0], RequestStarted)


@pytest.mark.parametrize("sent", [[b"12"], [b"1234"], [b"12", b"34"]])
def test_a_request_has_the_length_that_it_says(sent: list[bytes]) -> None:
    peer = RawPeer()
    peer.request(1, [*REQUEST, ("content-length", "3")])
    for part in sent[:-1]:
        peer.data(1, part)
    peer.data(1, sent[-1], end=True)
    assert peer.reset_code(1) == PROTOCOL
    peer.request(3, [*REQUEST, ("content-length", "3")])
    peer.data(3, b"123", end=True)
    assert of_stream(peer.events, 3) == (b"123", True, None)


# --------------------------------------------------------------------- with a library as the peer
def test_a_client_of_the_h2_library_gets_its_answer() -> None:
    peer = H2Peer()
    stream_id = peer.open()
    peer.client.send_data(stream_id, b"hello", end_stream=True)
    peer.exchange()
    assert of_stream(peer.events, stream_id) == (b"hello", True, None)
    peer.server.streams.respond(stream_id, ANSWER)
    peer.server.streams.send(stream_id, b"world")
    peer.server.streams.end(stream_id, TRAILERS)
    peer.exchange()
    names = [type(event).__name__ for event in peer.seen]
    assert names[-4:] == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]


def test_long_headers_are_continued() -> None:
    peer = H2Peer()
    stream_id = peer.open(end=True)
    peer.exchange()
    block = encode_headers([(":status", "200"), *[(f"x-{it}", "y" * 60) for it in range(600)]])
    peer.server.streams.end(stream_id, block)
    peer.exchange()
    assert [type(event).__name__ for event in peer.seen][-2:] == ["ResponseReceived", "StreamEnded"]
