"""The examples run as they stand, against the real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Served

pytestmark = pytest.mark.vllm

EXAMPLES = Path(__file__).parents[2] / "examples"


RUN_HERE = {
    "triton_stream.py": "grpc",
    "triton_infer.py": "grpc",
    "triton_async.py": "grpc",
    "triton_aio.py": "grpc",
    "openai_chat.py": "http",
    "openai_async.py": "http",
    "openai_tools.py": "http",
    "openai_structured.py": "http",
    "curl_chat.sh": "http",
}
# A model this small calls only what it must.
MORE = {"openai_tools.py": ["What is the capital of France?", "required"]}
# tests/interop/test_clients.py, which has the clients' packages
RUN_THERE = {
    "curl_generate.sh", "grpc_js_stream.mjs", "kserve_infer.py", "triton_http.py",
    "langchain_chat.py",
}  # fmt: skip
# tests/e2e/test_embeddings.py, which has the model
RUN_THERE |= {"openai_embeddings.py"}


@pytest.mark.parametrize(("name", "address"), RUN_HERE.items())
def test_an_example_prints_an_answer_about_paris(served: Served, name: str, address: str) -> None:
    runner = [sys.executable] if name.endswith(".py") else ["sh"]
    command = [*runner, str(EXAMPLES / name), getattr(served, address), *MORE.get(name, [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def readme_blocks() -> list[tuple[str, str]]:
    """The runnable blocks of the README's first screens, as (language, text)."""
    text = (EXAMPLES.parent / "README.md").read_text()
    return re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_readme_has_an_example_for_each_way_in() -> None:
    assert [language for language, _ in readme_blocks()] == ["python", "python", "sh"]


@pytest.mark.parametrize("place", range(3))
def test_the_readmes_examples_print_an_answer_about_paris(served: Served, place: int) -> None:
    language, text = readme_blocks()[place]
    text = text.replace("127.0.0.1:8001", served.grpc)
    text = text.replace("http://127.0.0.1:8000", served.http)
    command = [sys.executable, "-c", text] if language == "python" else ["sh", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_every_example_is_run() -> None:
    tested = RUN_HERE.keys() | RUN_THERE
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested
