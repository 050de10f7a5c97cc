"""What a hostile client may do to one connection, and where it ends."""

import struct
from collections.abc import Callable

import pytest

from tests.unit.http2_peer import ANSWER, REQUEST, RawPeer
from transport.codes import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    ErrorCode,
)
from transport.connection import Limits
from transport.frames import (
    frame,
    ping_frame,
    reset_frame,
    settings_frame,
    window_frame,
)

Flood = Callable[[RawPeer, int], None]


def rapid_reset(peer: RawPeer, turn: int) -> None:
    peer.request(2 * turn + 1)
    peer.send(reset_frame(2 * turn + 1, 8))


def made_to_reset(peer: RawPeer, turn: int) -> None:
    peer.request(2 * turn + 1)
    peer.send(window_frame(2 * turn + 1, 0))


def malformed(peer: RawPeer, turn: int) -> None:
    peer.request(2 * turn + 1, REQUEST[1:])


def empty_data(peer: RawPeer, turn: int) -> None:
    if turn == 0:
        peer.request(1)
    peer.data(1)


def late_trailers(peer: RawPeer, turn: int) -> None:
    if turn == 0:
        peer.request(1)
        peer.connection.streams.reset(1, ErrorCode.CANCEL)
    peer.request(1, [("x", "y")])


def each(make: Callable[[int], bytes]) -> Flood:
    def flood(peer: RawPeer, turn: int) -> None:
        peer.send(make(turn))

    return flood


FLOODS: dict[str, Flood] = {
    "resets": rapid_reset,
    "resets of ours": made_to_reset,
    "malformed requests": malformed,
    "empty data": empty_data,
    "headers behind the end": late_trailers,
    "pings": each(lambda _: ping_frame(bytes(8))),
    "settings": each(lambda _: settings_frame({4: 70_000})),
    "window updates": each(lambda _: window_frame(0, 1)),
    "priorities": each(lambda turn: frame(PRIORITY, 0, 2 * turn + 1, bytes(5))),
    "unknown frames": each(lambda _: frame(0xBE, 0, 0)),
    "goaways": each(lambda _: frame(7, 0, 0, bytes(8))),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_the_connection(flood: str) -> None:
    peer = RawPeer()
    for turn in range(5000):
        FLOODS[flood](peer, turn)
        if peer.failure is not None:
            break
    assert peer.failure == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("flood", FLOODS)
def test_the_same_at_an_honest_pace_does_not(flood: str) -> None:
    peer = RawPeer()
    for turn in range(300):
        peer.now += 1.0
        FLOODS[flood](peer, turn)
    assert peer.failure is None


def test_continuations_without_an_end_end_the_connection() -> None:
    for part in (b"", bytes(1000)):
        peer = RawPeer()
        peer.send(frame(HEADERS, 0, 1, b""))
        for _ in range(200):
            peer.send(frame(CONTINUATION, 0, 1, part))
        assert peer.failure == ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_that_unpacks_to_far_more_ends_the_connection() -> None:
    peer = RawPeer(Limits(max_header_bytes=10_000))
    bomb = [*REQUEST, *[("x", "y" * 2000)] * 100]
    block = peer.block(bomb)
    assert len(block) < 10_000
    peer.send(frame(HEADERS, END_HEADERS, 1, block))
    assert peer.failure == ErrorCode.ENHANCE_YOUR_CALM


def test_window_updates_that_follow_data_are_earned() -> None:
    peer = RawPeer()
    peer.request(1)
    streams = peer.connection.streams
    streams.respond(1, ANSWER)
    for _ in range(20_000):
        streams.send(1, b"token")
        peer.send(window_frame(1, 5), window_frame(0, 5))
    assert peer.failure is None


def test_a_peer_that_reads_nothing_makes_nothing_grow() -> None:
    peer = RawPeer()
    peer.request(1)
    streams = peer.connection.streams
    streams.respond(1, ANSWER)
    sent = 0
    while streams.send(1, bytes(1000)):
        sent += 1000
    assert sent < 65_536
    assert streams.queued(1) <= 1000
    peer.send(*(ping_frame(bytes(8)) for _ in range(150)))
    assert len(peer.connection.take()) < 70_000


def test_a_reset_drops_what_was_queued() -> None:
    peer = RawPeer()
    peer.request(1)
    streams = peer.connection.streams
    streams.respond(1, ANSWER)
    streams.send(1, bytes(200_000))
    peer.answers()
    peer.send(reset_frame(1, 8), window_frame(0, 2**20))
    assert DATA not in [kind for kind, *_ in peer.answers()]


def test_the_end_says_why() -> None:
    peer = RawPeer()
    for _ in range(300):
        peer.send(ping_frame(bytes(8)))
    *_, (kind, _, _, payload) = peer.answers()
    assert kind == 7
    assert struct.unpack(">L", payload[4:8])[0] == ErrorCode.ENHANCE_YOUR_CALM
    assert payload[8:] == b"too many pings"
    assert peer.send(frame(RST_STREAM, 0, 1, bytes(4))) == []
