"""Another client of etcd sees what ours writes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.discovery import Record
from runtime.discovery_etcd import EtcdDiscovery
from tests.etcd_server import EtcdServer, etcd_server

WITNESS = Path(__file__).with_name("etcd3_witness.py")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as server:
        yield server


@pytest.fixture
def witness(etcd: EtcdServer) -> Iterator["subprocess.Popen[str]"]:
    etcd.put("/penstock/worker/first", b'{"by":"hand"}')
    port = etcd.address.rpartition(":")[2]
    command = [sys.executable, str(WITNESS), port, "/penstock/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.timeout(30)
async def test_etcd3_reads_and_follows_our_registry(etcd, witness):
    def next_line() -> Any:
        return json.loads(witness.stdout.readline())

    assert next_line() == {"/penstock/worker/first": '{"by":"hand"}'}
    discovery = EtcdDiscovery(etcd.options())
    lease = await discovery.register(Record(kind="worker", id="w1", value=b"1"))
    await lease.update(b"2")
    await lease.withdraw()
    await discovery.close()
    key = "/penstock/worker/w1"
    assert [next_line() for _ in range(4)] == [
        ["PutEvent", key, "1"],
        ["PutEvent", key, "2"],
        ["PutEvent", key, ""],
        ["DeleteEvent", key, ""],
    ]
