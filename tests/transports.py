"""The transport of the tests' servers: PENSTOCK_GRPC_TRANSPORT, which our processes read too."""

import os

import pytest

from runtime.grpc_options import GRPCIO, NATIVE, GrpcOptions

_VARIABLE = "PENSTOCK_GRPC_TRANSPORT"


def transport() -> str:
    """Return its name."""
    return os.environ.get(_VARIABLE, GrpcOptions().transport)


@pytest.fixture(params=[NATIVE, GRPCIO])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once on each."""
    name: str = request.param
    monkeypatch.setenv(_VARIABLE, name)
    return name
