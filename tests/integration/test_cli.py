"""The console command as people and scripts use it: real processes, the simulated engine."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until

PENSTOCK = (sys.executable, "-P", "-m", "cli.main")
SIM = ("--engine=sim", "--sim-speedup=0")
FREE = ("--grpc-port=0", "--http-port=0", "--metrics-port=0")


@dataclass(kw_only=True)
class Running:
    """A penstock process that is ready, and what its ready file says."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    log: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def penstock(tmp_path: Path, *args: str, **environment: str) -> Iterator[Running]:
    name = args[0] + str(len(list(tmp_path.iterdir())))
    ready, log = tmp_path / f"{name}.json", tmp_path / f"{name}.log"
    tmp = tmp_path / "tmp"
    tmp.mkdir(exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*PENSTOCK, args[0], f"--ready-file={ready}", *args[1:]],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(tmp)} | environment,
        )
    family = [psutil.Process(process.pid)]
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, limit_s=40)
        assert process.poll() is None, log.read_text()
        yield Running(process=process, ready=json.loads(ready.read_text()), log=log)
        assert not ready.exists() or process.poll() is None or process.returncode < 0
    finally:
        if process.poll() is None:
            family += psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        process.wait(40)
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()
        print(log.read_text())


def fails(*args: str, **environment: str) -> tuple[int, str]:
    """Run penstock to its end; returns its exit code and what it said on stderr."""
    done = subprocess.run(
        [*PENSTOCK, *args],
        capture_output=True,
        timeout=40,
        env=os.environ | environment,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def chat(http: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields
    request = urllib.request.Request(
        f"{http}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        parsed: dict[str, Any] = json.load(answer)
        return parsed


def test_help_is_quick_and_lists_the_commands():
    took = []
    for _ in range(3):
        began = time.monotonic()
        shown = subprocess.run([*PENSTOCK, "--help"], capture_output=True, check=True, timeout=20)
        took.append(time.monotonic() - began)
    assert min(took) < 0.3
    for command in ("serve", "frontend", "worker", "gateway"):
        assert command in shown.stdout.decode()


@pytest.mark.parametrize("command", ["serve", "frontend", "worker", "gateway"])
def test_every_command_has_the_same_names_for_the_same_things(command):
    shown = subprocess.run(
        [*PENSTOCK, command, "--help"], capture_output=True, check=True, timeout=20
    ).stdout.decode()
    for flag in ("--host", "--metrics-port", "--log-level", "--log-format", "--ready-file"):
        assert f"{flag} " in shown
    assert "--config FILE" in shown
    assert "PENSTOCK_METRICS_PORT" in shown


@pytest.mark.parametrize(
    ("args", "environment", "named"),
    [
        ((), {}, "usage"),
        (("dance",), {}, "dance"),
        (("serve",), {}, "MODEL"),
        (("serve", "no-such-model", *SIM, *FREE), {}, "no-such-model"),
        (("serve", "smollm2", "--workers=0", *SIM), {}, "--workers"),
        (("serve", "smollm2", "--model-name=a", "--model-name=b", *SIM), {}, "2 names for 1"),
        (("serve", "smollm2", "--max-model-len=9", *SIM), {}, "behind --"),
        (("serve", "smollm2", "--no-http", "--no-grpc"), {}, "--no-grpc"),
        (("serve", "smollm2", *SIM, *FREE, "--", "--max-model-len", "9"), {}, "configuration"),
        (("frontend", "--grpc-port=70000"), {}, "--grpc-port"),
        (("frontend", "--", "--x"), {}, "behind --"),
        (("frontend",), {"PENSTOCK_HTTP_PORT": "http"}, "PENSTOCK_HTTP_PORT"),
        (("frontend", "--router-policy=dice"), {}, "dice"),
        (("frontend", "--processes=0"), {}, "--processes"),
        (("serve", "smollm2", "--restart-limit=-1"), {}, "--restart-limit"),
        (("frontend", "--config=/nowhere.yaml"), {}, "/nowhere.yaml"),
        (("frontend", "--host=192.0.2.1"), {}, "--host"),
        (("frontend", f"--host={'a' * 80}"), {}, "--host"),
        (("serve", "smollm2", "--cache-dir=/dev/null/x", *SIM, *FREE), {}, "--cache-dir"),
        (("gateway",), {}, "--target"),
        (("worker", "no-such-model", *SIM, FREE[0], FREE[2]), {}, "no-such-model"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(args, environment, named):
    code, said = fails(*args, **environment)
    assert code == 2
    if args:
        assert named in said
        assert said.splitlines()[-1].startswith("penstock: error: ")
        assert "Traceback" not in said


def test_print_config_looks_at_no_port_and_no_model():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*PENSTOCK, "serve", "no-such-model", f"--grpc-port={port}", "--print-config"],
            capture_output=True,
            check=True,
            timeout=20,
        )
    assert f"grpc-port: {port}  # --grpc-port\n" in done.stdout.decode()
    assert done.stderr == b""


@pytest.mark.parametrize("flag", ["grpc-port", "http-port", "metrics-port"])
def test_a_port_in_use_is_one_clear_line(flag, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = [f"--{f}=0" for f in ("grpc-port", "http-port", "metrics-port") if f != flag]
        code, said = fails("frontend", f"--{flag}={port}", *free, f"--discovery-path={tmp_path}")
    assert code == 2
    assert f"127.0.0.1:{port}" in said
    assert f"--{flag}" in said
    assert len(said.splitlines()) == 1


def test_a_front_door_is_up_without_workers_and_small_and_stops_cleanly(tmp_path):
    with penstock(tmp_path, "frontend", *FREE, f"--discovery-path={tmp_path}/d") as front:
        assert front.ready["models"] == []
        assert get(f"{front.ready['metrics']}/live") == (200, b"ok\n")
        assert get(f"{front.ready['metrics']}/ready")[0] == 503
        assert b"python_info" in get(f"{front.ready['metrics']}/metrics")[1]
        assert psutil.Process(front.process.pid).memory_info().rss < 150 * 1024**2
        assert front.stop() == 0
    assert not (tmp_path / "frontend0.json").exists()


def test_processes_started_apart_find_each_other_and_a_gateway_works_before_them(tmp_path):
    discovery = f"--discovery-path={tmp_path}/d"
    with (
        penstock(tmp_path, "frontend", *FREE, discovery, "--no-http") as front,
        penstock(tmp_path, "gateway", *FREE[1:], f"--target={front.ready['grpc']}") as gateway,
        penstock(tmp_path, "worker", "smollm2", *SIM, FREE[0], FREE[2], discovery) as worker,
    ):
        assert set(front.ready) == {"pid", "grpc", "metrics", "models"}
        assert set(gateway.ready) == {"pid", "http", "metrics"}
        assert worker.ready["models"] == ["smollm2"]
        wait_until(lambda: get(f"{front.ready['metrics']}/ready")[0] == 200, limit_s=10)
        assert chat(gateway.ready["http"], model="smollm2")["usage"]["completion_tokens"] == 4
        assert worker.stop() == 0
        wait_until(lambda: get(f"{front.ready['metrics']}/ready")[0] == 503, limit_s=10)


@pytest.fixture
def serving(tmp_path):
    with penstock(tmp_path, "serve", "smollm2", *SIM, *FREE, PENSTOCK_WORKERS="1") as one:
        yield one


def test_serve_answers_prints_examples_and_leaves_nothing_behind(serving, tmp_path):
    assert set(serving.ready) == {"pid", "grpc", "http", "metrics", "models"}
    assert serving.ready["pid"] == serving.process.pid
    assert serving.ready["models"] == ["smollm2"]
    assert chat(serving.ready["http"], model="smollm2")["usage"]["completion_tokens"] == 4
    family = serving.family()
    assert serving.stop() == 0
    said = serving.log.read_text()
    for part in ("tritonclient:", "openai:", "curl:", serving.ready["grpc"], "[front-0] "):
        assert part in said
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_serve_speaks_json_only_when_asked_to(tmp_path):
    flags = (*SIM, *FREE, "--log-format=json", "--model-name=mine")
    with penstock(tmp_path, "serve", "smollm2", *flags) as one:
        assert one.ready["models"] == ["mine"]
        assert one.stop() == 0
        entries = [json.loads(line) for line in one.log.read_text().splitlines()]
    assert {entry.get("process") for entry in entries} == {None, "front-0", "mine-0"}
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)


CYAN, GREEN, PLAIN = "\x1b[36m", "\x1b[32m", "\x1b[0m"


@pytest.mark.parametrize(
    ("no_color", "labels"),
    [
        ("", (f"{CYAN}[front-0]{PLAIN} ", f"{GREEN}[smollm2-0]{PLAIN} ")),
        ("1", ("[front-0] ", "[smollm2-0] ")),
    ],
)
def test_on_a_terminal_each_childs_lines_begin_in_a_colour_of_their_own(no_color, labels):
    terminal, inner = pty.openpty()
    command = [*PENSTOCK, "serve", "smollm2", *SIM, *FREE]
    environment = os.environ | {"NO_COLOR": no_color, "TERM": "xterm"}
    with subprocess.Popen(command, stderr=inner, stdout=subprocess.DEVNULL, env=environment) as one:
        os.close(inner)
        said = ""
        try:
            while not all(label in said for label in labels):
                said += os.read(terminal, 65536).decode()
        finally:
            one.terminate()
            os.close(terminal)
    assert bool(no_color) == ("\x1b" not in said)


def open_stream(one: Running, *, max_tokens: int) -> Any:
    body = {"model": "smollm2", "prompt": "x", "max_tokens": max_tokens, "stream": True}
    request = urllib.request.Request(
        f"{one.ready['http']}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=20)


def child_of(serving: Running, command: str) -> psutil.Process:
    (found,) = (p for p in serving.family() if command in p.cmdline())
    return found


def answers(serving: Running) -> bool:
    try:
        return bool(chat(serving.ready["http"], model="smollm2")["choices"])
    except OSError:
        return False


def test_a_killed_worker_comes_back_and_serves_again(serving):
    child_of(serving, "worker").kill()
    wait_until(lambda: serving.log.read_text().count("worker.serving: ready") == 2, limit_s=20)
    wait_until(lambda: answers(serving), limit_s=10)


def test_a_killed_front_door_comes_back_where_it_was_announced(serving):
    child_of(serving, "frontend").kill()
    wait_until(lambda: serving.log.read_text().count("cli.frontend: ready") == 2, limit_s=20)
    wait_until(lambda: answers(serving), limit_s=10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_do_not_outlive_a_killed_parent(serving):
    family = serving.family()
    assert len(family) >= 2
    serving.process.kill()
    assert not psutil.wait_procs(family, timeout=15)[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_serve_can_be_started_again_at_once_on_its_ports(serving, tmp_path):
    ports = [
        f"--{name}-port={serving.ready[name].rpartition(':')[2]}"
        for name in ("grpc", "http", "metrics")
    ]
    with open_stream(serving, max_tokens=8000):
        serving.process.kill()
        with penstock(tmp_path, "serve", "smollm2", *SIM, *ports) as again:
            assert answers(again)
            assert len(list((tmp_path / "tmp").glob("penstock-serve-*"))) == 1


def test_a_stop_lets_a_running_stream_finish(tmp_path):
    with penstock(tmp_path, "serve", "smollm2", "--engine=sim", *FREE) as one:
        with open_stream(one, max_tokens=150) as answer:
            first = answer.readline()
            one.process.send_signal(signal.SIGTERM)
            rest = answer.read()
        assert first.startswith(b"data: ")
        assert b'"finish_reason":"length"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert one.process.wait(30) == 0


def test_a_second_signal_stops_at_once(tmp_path):
    slow = ("--engine=sim", "--sim-speedup=0.01")
    with penstock(tmp_path, "serve", "smollm2", *slow, *FREE) as one:
        family = one.family()
        with socket.create_connection(one.ready["http"].removeprefix("http://").split(":")) as held:
            body = json.dumps({"model": "smollm2", "max_tokens": 500, "prompt": "x"}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            held.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            one.process.send_signal(signal.SIGINT)
            wait_until(lambda: "stopping: SIGINT" in one.log.read_text(), limit_s=10)
            one.process.send_signal(signal.SIGINT)
            assert one.process.wait(5) == 128 + signal.SIGINT
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((tmp_path / "tmp").iterdir()) == []
