"""tritonclient and our classes in one process, under every protobuf major that is allowed."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("both_in_one_process.py")
REQUIREMENTS = {"6": "protobuf>=6.33.5,<7", "7": "protobuf>=7,<8"}
INSTALL_S = 120
RUN_S = 60


@pytest.fixture(scope="module", params=REQUIREMENTS)
def protobuf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(major version, folder to put first on the path, or None when it is the installed one)."""
    major = request.param
    if importlib.metadata.version("protobuf").split(".")[0] == major:
        return major, None
    folder = tmp_path_factory.mktemp(f"protobuf{major}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    run([*pip, REQUIREMENTS[major]], INSTALL_S)
    return major, folder


def run(command: list[str], timeout_s: float, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(INSTALL_S + RUN_S)
@pytest.mark.parametrize("order", ["ours-first", "theirs-first"])
def test_both_work_in_one_process_in_either_order(protobuf, order: str) -> None:
    major, folder = protobuf
    path = os.pathsep.join(str(it) for it in (folder, ROOT) if it is not None)
    command = [sys.executable, "-W", "error", str(PROGRAM), order, major]
    said = run(command, RUN_S, PYTHONPATH=path)
    assert f"protobuf {major}." in said
