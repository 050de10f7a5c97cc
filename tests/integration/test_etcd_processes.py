"""Front door and workers as processes that find each other through etcd."""

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.grpc_client import RpcChannel
from tests.etcd_server import TTL_S, EtcdServer, etcd_server
from tests.integration.kserve_client import ask, infer, text_of
from tests.integration.test_cli import FREE, SIM, Running, chat, fails, get, penstock
from tests.waiting import wait_until
from wire.pool import rpc_types

MODEL = "smollm2"
PASSWORD = "not to be seen"


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    folder = tmp_path / "etcd"
    folder.mkdir()
    with etcd_server(folder) as server:
        yield server


def flags(etcd: EtcdServer) -> tuple[str, ...]:
    return ("--discovery=etcd", f"--etcd-endpoints={etcd.url}", f"--etcd-lease-ttl={TTL_S}")


def workers_of(front: Running) -> set[str]:
    """The workers that the front door knows."""
    told = json.loads(get(f"{front.ready['metrics']}/health")[1])
    return {worker["id"] for model in told["models"] for worker in model["workers"]}


def requests_until(done: threading.Event, front: Running) -> int:
    """Ask again and again; returns how often. Whatever fails is raised."""
    count = 0
    while not done.is_set():
        assert chat(front.ready["http"], model=MODEL)["choices"]
        count += 1
    return count


@pytest.fixture
def fleet(etcd: EtcdServer, tmp_path: Path) -> Iterator[tuple[Running, list[Running]]]:
    """A front door and two workers, known to it."""
    where = flags(etcd)
    worker = ("worker", MODEL, *SIM, FREE[0], FREE[2], *where)
    with ExitStack() as stack:
        workers = [stack.enter_context(penstock(tmp_path, *worker)) for _ in range(2)]
        door = ("frontend", *FREE, *where, f"--expect-model={MODEL}")
        front = stack.enter_context(penstock(tmp_path, *door))
        wait_until(lambda: len(workers_of(front)) == 2, limit_s=10)
        yield front, workers


@pytest.fixture
async def channel(fleet: tuple[Running, list[Running]]) -> AsyncIterator[RpcChannel]:
    opened = RpcChannel(fleet[0].ready["grpc"], rpc_types=rpc_types)
    yield opened
    await opened.close()


async def test_a_request_reaches_a_worker_that_etcd_knows(channel):
    assert text_of(await infer(channel, ask(model=MODEL, stream=False)))


def test_no_request_fails_when_etcd_restarts_and_a_killed_worker_is_dropped(etcd, fleet):
    front, workers = fleet
    enough = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(requests_until, enough, front)
        try:
            etcd.kill()
            # Longer than the leases last, and long enough for everybody to notice.
            came_back = time.monotonic() + 1.5 * TTL_S
            wait_until(lambda: time.monotonic() > came_back)
            etcd.start()
            logs = [running.log for running in (front, *workers)]
            wait_until(lambda: all("etcd answers again" in log.read_text() for log in logs))
        finally:
            enough.set()
        assert asked.result(20) > 0
    assert len(workers_of(front)) == 2
    workers[0].process.kill()
    began = time.monotonic()
    wait_until(lambda: len(workers_of(front)) == 1, limit_s=10)
    print(f"dropped after {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < TTL_S + 1


def test_serve_hands_a_password_to_its_children_unseen(etcd, tmp_path):
    etcd.protect("penstock", PASSWORD)
    login = ("--etcd-user=penstock", "--etcd-prefix=/penstock/own")
    where = (*flags(etcd), *login)
    with penstock(
        tmp_path, "serve", MODEL, *SIM, *FREE, *where, PENSTOCK_ETCD_PASSWORD=PASSWORD
    ) as one:
        assert chat(one.ready["http"], model=MODEL)["choices"]
        lines = [" ".join(process.cmdline()) for process in one.family()]
        assert sum("--etcd-user=penstock" in line for line in lines) == 2
        assert PASSWORD not in "".join(lines) + one.log.read_text()


def test_a_worker_that_etcd_does_not_let_in_says_so_and_ends(etcd):
    etcd.protect("penstock", PASSWORD)
    login = ("--etcd-user=penstock", "--metrics-port=0", "--grpc-port=0")
    code, said = fails("worker", MODEL, *SIM, *flags(etcd), *login, PENSTOCK_ETCD_PASSWORD="wrong")
    assert (code, "authentication failed" in said.splitlines()[-1]) == (2, True), said
