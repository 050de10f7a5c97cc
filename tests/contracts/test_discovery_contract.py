"""What every discovery back end promises (runtime/discovery.py)."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager, contextmanager

import msgspec
import pytest

from runtime.discovery import Delete, Put, Record, Snapshot
from runtime.discovery_file import FileDiscovery
from runtime.discovery_memory import MemoryDiscovery
from runtime.discovery_open import open_discovery
from runtime.errors import InvalidConfig
from runtime.options_discovery import DiscoveryOptions
from runtime.process import pid_place
from tests.etcd_server import etcd_server
from tests.waiting import eventually


def record(record_id="w1", value=b'{"a":1}', kind="worker"):
    return Record(kind=kind, id=record_id, value=value)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=["memory", "file", "etcd"])
def options(request, tmp_path):
    """One registry for each test."""
    if request.param == "etcd":
        return request.getfixturevalue("etcd").options(etcd_prefix=f"/{tmp_path.name}")
    return DiscoveryOptions(discovery=request.param, discovery_path=str(tmp_path / "registry"))


@pytest.fixture
async def discovery(options):
    one = open_discovery(options)
    async with asyncio.timeout(20):
        yield one
    await one.close()


@pytest.fixture
async def elsewhere(discovery, options):
    """Another process's view where the back end has one, else the same object."""
    if isinstance(discovery, MemoryDiscovery):
        yield discovery
        return
    other = open_discovery(options)
    yield other
    await other.close()


@asynccontextmanager
async def watching(discovery, kind="worker"):
    changes = discovery.watch(kind)
    async with asyncio.timeout(10), aclosing(changes):
        yield changes


async def test_a_watch_begins_with_a_snapshot_even_of_nothing(elsewhere):
    async with watching(elsewhere) as changes:
        assert await anext(changes) == Snapshot(records=())


async def test_a_registered_record_is_in_the_next_watchers_snapshot(discovery, elsewhere):
    await discovery.register(record())
    await discovery.register(record(kind="other"))
    async with watching(elsewhere) as changes:
        assert await anext(changes) == Snapshot(records=(record(),))


async def test_put_update_and_withdraw_reach_a_watcher_in_order(discovery, elsewhere):
    async with watching(elsewhere) as changes:
        await anext(changes)
        lease = await discovery.register(record())
        assert await anext(changes) == Put(record=record())
        await lease.update(b'{"a":2}')
        assert await anext(changes) == Put(record=record(value=b'{"a":2}'))
        await lease.withdraw()
        assert await anext(changes) == Delete(kind="worker", id="w1")
        await lease.withdraw()
        await lease.update(b'{"a":3}')
        await discovery.register(record("w2"))
        assert await anext(changes) == Put(record=record("w2"))


async def test_an_equal_value_is_not_repeated(discovery, elsewhere):
    async with watching(elsewhere) as changes:
        await anext(changes)
        lease = await discovery.register(record())
        assert await anext(changes) == Put(record=record())
        await lease.update(b'{"a":1}')
        await discovery.register(record())
        await discovery.register(record("w2"))
        assert await anext(changes) == Put(record=record("w2"))


async def test_two_watchers_see_the_same(discovery, elsewhere):
    async with watching(discovery) as first, watching(elsewhere) as second:
        assert await anext(first) == await anext(second) == Snapshot(records=())
        await discovery.register(record())
        assert await anext(first) == await anext(second) == Put(record=record())


async def test_a_slow_watcher_is_told_the_last_state(discovery):
    async with watching(discovery) as changes:
        await anext(changes)
        lease = await discovery.register(record())
        gone = await discovery.register(record("w0"))
        for i in range(100):
            await lease.update(b'{"a":%d}' % i)
        await gone.withdraw()
        told = [await anext(changes)]
        # What a server tells may be a few changes behind.
        while told[-1] != Put(record=record(value=b'{"a":99}')):
            told.append(await anext(changes))
        assert len(told) < 10


async def test_a_replaced_lease_no_longer_touches_the_record(discovery, elsewhere):
    old = await discovery.register(record())
    await elsewhere.register(record(value=b'{"new":true}'))
    await old.update(b'{"old":true}')
    await old.withdraw()
    async with watching(elsewhere) as changes:
        assert await anext(changes) == Snapshot(records=(record(value=b'{"new":true}'),))


async def test_close_withdraws_everything_and_ends_the_watches(discovery, elsewhere):
    await discovery.register(record())
    await discovery.register(record("w2"))
    async with watching(discovery) as changes:
        await anext(changes)
        await discovery.close()
        await discovery.close()
        assert {c.id for c in [c async for c in changes]} <= {"w1", "w2"}
    async with watching(elsewhere) as changes:
        assert await anext(changes) == Snapshot(records=())


@pytest.mark.parametrize("bad", ["", "..", "a/b", "Ä", "A", "-a", "a" * 129, ".hidden", "a b"])
async def test_bad_names_are_refused(discovery, bad):
    with pytest.raises(InvalidConfig) as caught:
        await discovery.register(record(bad))
    assert caught.value.param == "id"
    with pytest.raises(InvalidConfig) as caught:
        await discovery.register(record(kind=bad))
    assert caught.value.param == "kind"
    with pytest.raises(InvalidConfig):
        await anext(discovery.watch(bad))


async def test_a_value_that_is_not_json_is_refused(discovery):
    for bad in (b"", b"{", b"\xff", b"{} {}"):
        with pytest.raises(InvalidConfig):
            await discovery.register(record(value=bad))


OWNER = """
import asyncio, sys
from pathlib import Path
from runtime.discovery import Record
from runtime.discovery_file import FileDiscovery
async def main():
    await FileDiscovery(Path(sys.argv[1]), ttl_s=float(sys.argv[2])).register(
        Record(kind="worker", id="w1", value=b"{}"))
    print("registered", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), "30"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"registered\n"
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()


async def test_a_file_record_goes_at_once_when_its_owner_is_killed(owner, tmp_path):
    discovery = FileDiscovery(tmp_path, ttl_s=30)
    async with watching(discovery) as changes:
        assert await anext(changes) == Snapshot(records=(record(value=b"{}"),))
        owner.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            assert await anext(changes) == Delete(kind="worker", id="w1")


async def test_a_file_record_from_elsewhere_goes_when_its_lease_is_not_renewed(tmp_path):
    envelope = {"pid": 1, "start": "0", "place": "another machine", "lease": "x", "value": {}}
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "w1.json").write_bytes(msgspec.json.encode(envelope))
    discovery = FileDiscovery(tmp_path, ttl_s=0.5)
    async with watching(discovery) as changes:
        assert await anext(changes) == Snapshot(records=(record(value=b"{}"),))
        assert await anext(changes) == Delete(kind="worker", id="w1")
    async with watching(discovery) as changes:
        assert await anext(changes) == Snapshot(records=())


async def test_a_file_record_is_renewed_and_comes_back_if_someone_removes_its_file(tmp_path):
    discovery = FileDiscovery(tmp_path, ttl_s=0.6)
    await discovery.register(record())
    async with watching(discovery) as changes:
        await anext(changes)
        (tmp_path / "worker" / "w1.json").unlink()
        assert await anext(changes) == Delete(kind="worker", id="w1")
        assert await anext(changes) == Put(record=record())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.2):
                await anext(changes)
    await discovery.close()


@contextmanager
def no_file_descriptor_left():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_watcher_without_file_descriptors_keeps_what_it_knows(tmp_path, caplog):
    discovery = FileDiscovery(tmp_path, ttl_s=0.6)
    await discovery.register(record())
    async with watching(discovery) as changes, asyncio.TaskGroup() as tasks:
        await anext(changes)
        await discovery.register(record("w2"))
        assert await anext(changes) == Put(record=record("w2"))
        following = tasks.create_task(anext(changes))
        with no_file_descriptor_left():
            await eventually(lambda: "cannot read" in caplog.text or following.done())
        await discovery.register(record("w3"))
        assert await following == Put(record=record("w3"))
    await discovery.close()


async def test_an_owner_without_file_descriptors_goes_on_renewing_later(tmp_path, caplog):
    discovery = FileDiscovery(tmp_path, ttl_s=0.6)
    await discovery.register(record())
    path = tmp_path / "worker" / "w1.json"
    with no_file_descriptor_left():
        path.unlink()
        await eventually(lambda: "w1.json: Too many open files" in caplog.text)
    await eventually(path.exists)
    await discovery.close()


async def test_files_that_are_no_records_are_ignored(tmp_path, caplog):
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "junk.json").write_text("{")
    (tmp_path / "worker" / "README").write_text("hello")
    discovery = FileDiscovery(tmp_path)
    async with watching(discovery) as changes:
        assert await anext(changes) == Snapshot(records=())
    assert "junk.json" in caplog.text


async def test_a_reused_pid_does_not_keep_a_dead_owners_record(tmp_path):
    envelope = {"pid": 1, "start": "1", "place": pid_place(), "lease": "x", "value": {}}
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "w1.json").write_bytes(msgspec.json.encode(envelope))
    async with watching(FileDiscovery(tmp_path)) as changes:
        assert await anext(changes) == Snapshot(records=())


def test_unknown_back_ends_and_impossible_folders_are_configuration_errors(tmp_path):
    for kind, path in (("zookeeper", None), ("file", "/proc/nowhere")):
        with pytest.raises(InvalidConfig):
            open_discovery(DiscoveryOptions(discovery=kind, discovery_path=path))
