"""The Dockerfile: clean, without a root user, and its commands are ours."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import bootstrap
from cli.frontend import FrontendConfig
from runtime.config import parse_config
from runtime.status_server import StatusServer
from tests.waiting import wait_until
from worker.config import WorkerConfig

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
IMAGES = {"frontdoor": FrontendConfig, "worker": WorkerConfig}


def stages() -> dict[str, str]:
    """{name: the text of a stage}, continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", "")
    parts = re.split(r"^FROM \S+ AS (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def said(instruction: str, stage: str) -> str:
    """The only use of an instruction in a stage."""
    (value,) = re.findall(rf"^{instruction} (.*)$", stages()[stage], re.MULTILINE)
    assert isinstance(value, str)
    return value


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", DOCKERFILE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_our_command_as_a_numbered_user(image: str) -> None:
    assert said("USER", image) == "10001:10001"
    assert said("STOPSIGNAL", "runtime") == "SIGTERM"
    assert json.loads(said("ENTRYPOINT", "runtime")) == ["penstock"]
    command, *args = json.loads(said("CMD", image))
    environment = dict(re.findall(r"(PENSTOCK_\w+)=(\S+)", said("ENV", "runtime")))
    config, _ = parse_config(
        IMAGES[image], args, prog=command, description="", environment=environment
    )
    assert config.host == "0.0.0.0"
    ports = {config.grpc_port, config.metrics_port, getattr(config, "http_port", 8000)}
    assert ports == set(map(int, said("EXPOSE", "runtime").split()))


def test_the_front_doors_image_has_no_engine_in_it() -> None:
    assert said("COPY", "frontdoor").startswith("--from=frontdoor-packages ")
    (installed,) = re.findall(r"^RUN (.*)$", stages()["frontdoor-packages"], re.MULTILINE)
    assert installed == "uv pip install -r pyproject.toml"


def test_both_builds_of_the_worker_are_known_to_set_up() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(bootstrap.EXTRA.values()) <= project["optional-dependencies"].keys()
    assert bootstrap.EXTRA.keys() == bootstrap.NEVER.keys() == {"cpu", "gpu"}


def test_what_the_wheel_is_made_of_reaches_the_build_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        "pyproject.toml",
        "bootstrap.py",
        "README.md",
        *packages,
    }


@pytest.mark.parametrize(("is_ready", "code"), [(lambda: True, 0), (lambda: False, 1)])
async def test_the_health_check_asks_whether_the_process_is_ready(
    is_ready: Callable[[], bool], code: int
) -> None:
    status = StatusServer(host="127.0.0.1", port=0, is_ready=is_ready)
    url = status.start()
    try:
        assert await health_check(url.rpartition(":")[2]) == code
    finally:
        status.stop()
    assert await health_check(url.rpartition(":")[2]) == 1


async def health_check(port: str) -> int:
    """The exit code of the image's health check, with the status port set to `port`."""
    (command,) = re.findall(r"CMD (\[.*\])", stages()["runtime"])
    python, *args = json.loads(command)
    assert python == "python3"
    process = await asyncio.create_subprocess_exec(
        sys.executable, *args, env={"PENSTOCK_METRICS_PORT": port}, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode is not None
    return process.returncode


UNSHARE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")


@pytest.fixture
def first_process() -> Iterator[Callable[..., psutil.Process]]:
    """Starts a command as the first process of a pid namespace, as a container does."""
    try:
        subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody make pid namespaces")
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> psutil.Process:
        outer = subprocess.Popen([*UNSHARE, *command])
        started.append(outer)
        family = psutil.Process(outer.pid)
        wait_until(lambda: bool(family.children()), limit_s=10)
        (inner,) = family.children()
        return inner

    yield start
    for outer in started:
        outer.kill()
        outer.wait(10)


def test_a_containers_first_process_ends_on_sigterm_before_it_serves(
    first_process: Callable[..., psutil.Process], tmp_path: Path
) -> None:
    never_written = tmp_path / "config.yaml"
    os.mkfifo(never_written)
    penstock = (sys.executable, "-P", "-m", "cli.main")
    process = first_process(*penstock, "frontend", f"--config={never_written}")
    writer = wait_for_reader(never_written)
    try:
        process.terminate()
        process.wait(30)
    finally:
        os.close(writer)


def wait_for_reader(fifo: Path) -> int:
    """Open a named pipe for writing as soon as somebody reads it."""
    opened: list[int] = []

    def has_reader() -> bool:
        with suppress(OSError):
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(has_reader, limit_s=30)
    return opened[0]
