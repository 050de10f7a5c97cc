"""The examples for clients of many kinds, as they stand, against a simulated engine's front door.

Clients that cannot share an environment with the others are installed into one of their own; where
they cannot be had, their tests are skipped.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.gateway_client import serving
from tests.integration.stack import running_stack

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
INSTALL_S = 120
RUN_S = 25
MODEL = "sim"


@dataclass(frozen=True)
class Addresses:
    grpc: str
    http: str


@pytest.fixture
async def served(model_folder: Path) -> AsyncIterator[Addresses]:
    async with running_stack(model_folder) as stack, serving(stack.door.backend) as http:
        yield Addresses(grpc=stack.grpc, http=str(http.base_url).rstrip("/"))


async def run(*command: str, **environment: str) -> str:
    """What the command prints; it must succeed, and print something."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert out.strip()
    return out.decode()


def install(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, timeout=INSTALL_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
        pytest.skip(f"cannot be installed here: {failure}")


def python_with(package: str, folder: Path) -> str:
    """An interpreter that has this package."""
    uv = [sys.executable, "-m", "uv"]
    install([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    python = str(folder / "bin" / "python")
    install([*uv, "pip", "install", "--quiet", "--python", python, package])
    return python


@pytest.fixture(scope="module")
def kserve_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has kserve."""
    return python_with("kserve==0.21.0", tmp_path_factory.mktemp("kserve"))


@pytest.fixture(scope="module")
def langchain_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has LangChain's client of OpenAI."""
    return python_with("langchain-openai==1.7.4", tmp_path_factory.mktemp("langchain"))


@pytest.fixture(scope="module")
def grpc_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose node_modules have grpc-js and the example."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("grpc_js")
    packages = ["@grpc/grpc-js@1", "@grpc/proto-loader@0.8"]
    install([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages])
    shutil.copy(EXAMPLES / "grpc_js_stream.mjs", folder)
    return folder


@pytest.mark.parametrize(
    "name", ["triton_infer.py", "triton_async.py", "triton_stream.py", "triton_aio.py"]
)
async def test_tritonclients_ways_of_asking_over_grpc_are_answered(
    served: Addresses, name: str
) -> None:
    await run(sys.executable, str(EXAMPLES / name), served.grpc)


async def test_tritonclients_http_client_is_answered(served: Addresses) -> None:
    pytest.importorskip("geventhttpclient", reason="needs tritonclient[http]")
    address = served.http.removeprefix("http://")
    await run(sys.executable, str(EXAMPLES / "triton_http.py"), address)


async def test_curl_reads_generated_text_as_events(served: Addresses) -> None:
    out = await run("sh", str(EXAMPLES / "curl_generate.sh"), served.http, MODEL)
    assert out.startswith("data: {")
    assert '"triton_final_response":true' in out


@pytest.mark.timeout(2 * INSTALL_S + RUN_S)
async def test_kserves_own_client_is_answered(served: Addresses, kserve_python: str) -> None:
    await run(kserve_python, str(EXAMPLES / "kserve_infer.py"), served.grpc, MODEL)


@pytest.mark.timeout(2 * INSTALL_S + RUN_S)
async def test_langchain_streams_a_chains_answer(served: Addresses, langchain_python: str) -> None:
    await run(langchain_python, str(EXAMPLES / "langchain_chat.py"), served.http)


@pytest.mark.timeout(INSTALL_S + RUN_S)
async def test_grpc_js_reads_a_stream(served: Addresses, grpc_js: Path) -> None:
    example = str(grpc_js / "grpc_js_stream.mjs")
    await run("node", example, served.grpc, MODEL, str(ROOT / "proto" / "inference.proto"))
