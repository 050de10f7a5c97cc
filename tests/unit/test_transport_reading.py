"""How much of a socket one turn of the loop reads."""

import asyncio
from typing import Any

import pytest

from runtime.grpc_options import GrpcOptions
from transport.codes import PREFACE
from transport.dispatch import Dispatch
from transport.frames import frame, settings_frame
from transport.server_protocol import ServerProtocol, limits_of

UNKNOWN = 0xFA  # frames of a type that nobody knows are skipped (RFC 9113, section 4.1)


class Socket(asyncio.Transport):
    """Notes when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.closing
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reads = True


def opened() -> tuple[ServerProtocol, Socket]:
    options = GrpcOptions(keepalive_time_s=0)
    protocol = ServerProtocol(
        Dispatch(options, None), options, limits_of(options), lambda _: None, lambda _: None
    )
    socket = Socket()
    protocol.connection_made(socket)
    protocol.data_received(PREFACE + settings_frame({}))
    return protocol, socket


@pytest.mark.parametrize(("pieces", "reads_on"), [(1, True), (5, False)])
async def test_after_much_the_socket_is_read_on_in_the_next_turn(
    pieces: int, reads_on: bool
) -> None:
    protocol, socket = opened()
    protocol.data_received(frame(UNKNOWN, 0, 0, b"x" * 16_000) * pieces)
    assert socket.reads == reads_on
    await asyncio.sleep(0)
    assert socket.reads
    protocol.connection_lost(None)


@pytest.mark.parametrize("lost", [True, False])
async def test_a_connection_that_ends_meanwhile_is_not_read_on(lost: bool) -> None:
    protocol, socket = opened()
    protocol.data_received(frame(UNKNOWN, 0, 0, b"x" * 16_000) * 5)
    socket.closing = True
    if lost:
        protocol.connection_lost(None)
    await asyncio.sleep(0)
    assert not socket.reads
    protocol.connection_lost(None)
