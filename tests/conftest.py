"""Fixtures for all tests."""

from pathlib import Path

import pytest

from tests.transports import each_transport
from worker.models import resolve_model

__all__ = ["each_transport"]


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The bundled model as an HF folder, converted once into the user's cache."""
    return resolve_model("smollm2", cache_dir=None, progress=print).path
