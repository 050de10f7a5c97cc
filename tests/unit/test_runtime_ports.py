"""Taken ports are named with their flag and their holder; held ones can be shared."""

import os
import socket
import sys

import pytest

from runtime.errors import InvalidConfig
from runtime.ports import hold_port, require_free_port


def listener(port: int = 0, *, shared: bool = False) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def port_of(held: socket.socket) -> int:
    port: int = held.getsockname()[1]
    return port


def test_a_taken_port_is_named_with_its_flag_and_who_has_it():
    with listener() as taken, pytest.raises(InvalidConfig) as caught:
        require_free_port("127.0.0.1", port_of(taken), port_field="http_port", host_field="host")
    assert caught.value.param == "http_port"
    assert "--http-port" in caught.value.message
    if sys.platform.startswith("linux"):
        assert f"by process {os.getpid()}" in caught.value.message


def test_a_held_port_is_shared_and_gets_no_connection():
    with hold_port("127.0.0.1", 0, "http_port") as held:
        port = port_of(held)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with listener(port, shared=True) as one, listener(port, shared=True) as other:
            accepted = 0
            for each in (one, other):
                each.setblocking(False)
            for _ in range(20):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            for each in (one, other):
                while True:
                    try:
                        each.accept()[0].close()
                    except BlockingIOError:
                        break
                    accepted += 1
            assert accepted == 20


def test_a_port_that_another_does_not_share_cannot_be_held():
    with listener() as taken, pytest.raises(InvalidConfig, match="--grpc-port"):
        hold_port("127.0.0.1", port_of(taken), "grpc_port")


def test_a_held_port_is_taken_for_those_who_do_not_share_it_once_somebody_listens():
    with (
        hold_port("127.0.0.1", 0, "http_port") as held,
        listener(port_of(held), shared=True),
        pytest.raises(InvalidConfig, match="in use"),
    ):
        require_free_port("127.0.0.1", port_of(held), port_field="http_port", host_field="host")
