"""Fixtures of the integration tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.worker_stack import SLOW, Worker, serving


@pytest.fixture
async def worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder) as worker:
        yield worker


@pytest.fixture
async def slow_worker(model_folder: Path) -> AsyncIterator[Worker]:
    async with serving(model_folder, timing=SLOW) as worker:
        yield worker
