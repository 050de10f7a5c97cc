"""Fixtures of the integration tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.grpc_client import RpcChannel
from tests.integration.stack import Stack
from tests.integration.worker_stack import SLOW, Worker, serving
from wire.pool import rpc_types


@pytest.fixture
async def worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder) as worker:
        yield worker


@pytest.fixture
async def slow_worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder, timing=SLOW) as worker:
        yield worker


@pytest.fixture
async def channel(stack: Stack) -> AsyncIterator[RpcChannel]:
    """A channel to the front door of the module's own `stack`."""
    opened = RpcChannel(stack.grpc, rpc_types=rpc_types)
    yield opened
    await opened.close()
