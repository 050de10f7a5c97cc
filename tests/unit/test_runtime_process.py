"""Processes and what they leave behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.process import private_folder


def test_a_private_folder_clears_what_dead_processes_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "from runtime.process import private_folder; print(private_folder('p'))"
    made = subprocess.run(
        [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    left = Path(made.stdout.strip())
    assert left.is_dir()
    other = tmp_path / "p-else"
    other.mkdir()
    mine = private_folder("p")
    assert mine.is_dir()
    assert private_folder("p").is_dir()
    assert mine.is_dir()
    assert other.is_dir()
    assert not left.exists()
