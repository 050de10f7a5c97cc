"""`penstock status`: what it shows of status ports, for people and for scripts."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from cli.main import main
from runtime.status_server import StatusServer
from tests.integration.terminal import CTRL_C, on_pipes, on_terminal

LOAD = {"running": 3, "waiting": 12, "kv_usage": 0.0432}


class Fleet:
    """Status ports of a front door and of what stands behind it."""

    def __init__(self) -> None:
        self.ready = True
        self.front: dict[str, Any] = {
            "process": "frontend", "version": "0.1.0", "in_flight": 6, "queued": 2,
            "draining": False, "models": [],
        }  # fmt: skip
        self._ports = AsyncExitStack()

    def listen(self, is_ready: Callable[[], bool], about: dict[str, Any]) -> str:
        port = StatusServer(host="127.0.0.1", port=0, is_ready=is_ready, describe=lambda: about)
        self._ports.callback(port.stop)
        return port.start()

    def add_worker(self, number: int, **about: Any) -> None:
        """One that answers, unless `status_url` says otherwise."""
        health = {"process": "worker", "draining": False, "load": LOAD} | about.pop("health", {})
        url = about.pop("status_url", None) or self.listen(lambda: True, health)
        worker = {
            "id": f"sim-{number}", "address": f"10.0.0.{number}:8001", "engine": "sim",
            "version": "0.1.0", "connected": True, "in_flight": 3, "status_url": url,
        }  # fmt: skip
        self.front["models"][0]["workers"].append(worker | about)

    def add_model(self, name: str, *, ready: bool = True) -> None:
        model = {"name": name, "aliases": ["small"], "ready": ready, "context_length": 8192}
        self.front["models"].insert(0, model | {"workers": []})


@asynccontextmanager
async def fleet_of(*workers: dict[str, Any]) -> AsyncIterator[tuple[Fleet, str]]:
    fleet = Fleet()
    async with fleet._ports:
        fleet.add_model("sim")
        for number, worker in enumerate(workers, 1):
            fleet.add_worker(number, **worker)
        url = fleet.listen(lambda: fleet.ready, fleet.front)
        yield fleet, url.removeprefix("http://")


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Run `penstock status` in a thread; returns its exit code, output and complaints."""

    async def run(target: str, *args: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["status", f"--target={target}", *args])
        return code, *capsys.readouterr()

    return run


def lines(text: str) -> list[str]:
    """What is shown, without the spaces that make columns."""
    return [" ".join(line.split()) for line in text.splitlines() if line]


async def test_the_fleet_is_a_table_of_80_columns(look):
    nobody = "http://127.0.0.1:9"
    async with fleet_of(
        {},
        {"health": {"draining": True}},
        {"status_url": nobody},
        {"connected": False},
        {"health": {"load": None}},
    ) as (fleet, target):
        fleet.add_model("big", ready=False)
        code, out, said = await look(target)
    assert (code, said) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert lines(out) == [
        f"{target} ready penstock 0.1.0 6 in flight, 2 queued",
        "big not ready context 8192 also small",
        "sim ready context 8192 also small",
        "worker engine version address state open run wait KV",
        "sim-1 sim 0.1.0 10.0.0.1:8001 ready 3 3 12 4%",
        "sim-2 sim 0.1.0 10.0.0.2:8001 draining 3 3 12 4%",
        "sim-3 sim 0.1.0 10.0.0.3:8001 unknown 3 - - -",
        "sim-4 sim 0.1.0 10.0.0.4:8001 lost 3 3 12 4%",
        "sim-5 sim 0.1.0 10.0.0.5:8001 ready 3 - - -",
        f"sim-3: no health report from {nobody}: Connection refused",
    ]


async def test_json_is_the_front_doors_report_with_each_workers_own_in_it(look):
    async with fleet_of({}, {"status_url": "http://127.0.0.1:9"}) as (fleet, target):
        code, out, said = await look(target, "--json")
        report = json.loads(out)
        assert (code, said) == (0, "")
        first, second = report["models"][0]["workers"]
        assert first.pop("health")["load"] == LOAD
        assert "Connection refused" in second.pop("problem")
        assert report == {"status": "ready", "live": True} | fleet.front


async def test_a_fleet_that_is_not_ready_exits_with_1(look):
    async with fleet_of() as (fleet, target):
        fleet.ready = False
        fleet.front["models"] = []
        code, out, said = await look(target)
        assert (code, said) == (1, "")
        assert "not ready" in out
        assert "no worker has been seen yet" in out
        code, out, said = await look(target, "--json")
        assert (code, said) == (1, "")
        assert json.loads(out)["status"] == "not_ready"


async def test_an_older_front_door_that_says_less_is_shown_all_the_same(look):
    async with fleet_of() as (fleet, target):
        fleet.front.clear()
        code, out, said = await look(target)
        assert (code, said) == (0, "")
        assert lines(out) == [f"{target} ready 0 in flight, 0 queued"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "Connection refused"),
        (b"\x00\x00\x12\x04", "what answers speaks no HTTP"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "Not Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "Expected `object`, got `array`"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"models": 1}', "Expected `array | null`, got `int`"),
    ],
)
async def test_what_is_no_front_door_exits_with_2_and_says_why(answer, why, look):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        if answer is None:
            server.close()
        code, out, said = await look(target)
        assert (code, out) == (2, "")
        assert f"no health report from http://{target}: " in said
        assert why in " ".join(lines(said))
        code, out, said = await look(target, "--json")
        assert (code, said) == (2, "")
        assert json.loads(out)["status"] == "unreachable"


async def test_watch_looks_again_until_ctrl_c():
    async with fleet_of() as (fleet, target):
        with on_terminal("status", f"--target={target}", "--watch") as terminal:
            await asyncio.to_thread(terminal.wait_for, "sim  ready")
            fleet.add_worker(1)
            await asyncio.to_thread(terminal.wait_for, "sim-1 .* 12")
            fleet.ready = False
            await asyncio.to_thread(terminal.wait_for, "not ready")
            terminal.type(CTRL_C)
            assert await asyncio.to_thread(terminal.wait) == 1
            assert "Traceback" not in terminal.shown
        process = await on_pipes("status", f"--target={target}", "--watch", "--json")
        assert process.stdout is not None
        async with asyncio.timeout(30):
            for _ in range(2):
                assert json.loads(await process.stdout.readline())["status"] == "not_ready"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 1


@pytest.mark.parametrize(
    ("args", "named"), [(("--target=host",), "--target"), (("--", "more"), "behind --")]
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(args, named, capsys):
    assert main(["status", *args]) == 2
    assert named in capsys.readouterr().err
