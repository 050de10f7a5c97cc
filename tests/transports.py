"""The transports of the tests' servers and clients.

PENSTOCK_GRPC_TRANSPORT is the servers', which processes of ours read too.
"""

import os
from typing import Any

import pytest

from runtime.grpc_client import RpcChannel
from runtime.grpc_options import GRPCIO, NATIVE, GrpcOptions
from transport.channel import NativeChannel

_SERVERS, _CLIENTS = "PENSTOCK_GRPC_TRANSPORT", "TEST_GRPC_CLIENTS"


def transport() -> str:
    """Return the name of the servers'."""
    return os.environ.get(_SERVERS, GrpcOptions().transport)


def make_channel(address: str, **options: Any) -> Any:
    """Return a channel of the clients' transport."""
    kind = NativeChannel if os.environ.get(_CLIENTS) == NATIVE else RpcChannel
    return kind(address, **options)


@pytest.fixture(
    params=[(NATIVE, NATIVE), (NATIVE, GRPCIO), (GRPCIO, NATIVE), (GRPCIO, GRPCIO)],
    ids=lambda it: f"{it[0]}-server-{it[1]}-client",
)
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once for each pair; returns the server's."""
    server, client = request.param
    monkeypatch.setenv(_SERVERS, server)
    monkeypatch.setenv(_CLIENTS, client)
    name: str = server
    return name
