"""The examples run as they stand, against the real server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Served

pytestmark = pytest.mark.vllm

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("triton_stream.py", "grpc"),
        ("triton_infer.py", "grpc"),
        ("openai_chat.py", "http"),
        ("curl_chat.sh", "http"),
    ],
)
def test_an_example_prints_an_answer_about_paris(served: Served, name: str, address: str) -> None:
    runner = [sys.executable] if name.endswith(".py") else ["sh"]
    command = [*runner, str(EXAMPLES / name), getattr(served, address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_every_example_is_run() -> None:
    tested = {"triton_stream.py", "triton_infer.py", "openai_chat.py", "curl_chat.sh"}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested
