"""Where prometheus and promtool are: on PATH, or where .ci/prometheus puts them."""

import os
import shutil
from pathlib import Path

import pytest

_OURS = Path(__file__).resolve().parents[1] / ".venv" / "prometheus"


def prometheus_binary(name: str) -> Path:
    """Return the path of `name`; without one the test is skipped, in CI it fails."""
    found = shutil.which(name) or shutil.which(name, path=_OURS)
    if found is not None:
        return Path(found)
    why = f"no {name} on PATH: apt install prometheus, or run .ci/prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
