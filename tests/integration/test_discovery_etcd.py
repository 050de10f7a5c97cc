"""Discovery on a real etcd that is killed, frozen, compacted and protected."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.discovery import Change, Delete, Put, Record, Snapshot
from runtime.discovery_etcd import EtcdDiscovery
from runtime.errors import InvalidConfig
from runtime.etcd_client import EtcdFailed
from runtime.options_discovery import DiscoveryOptions
from tests.certificates import Authority
from tests.etcd_server import TTL_S, EtcdServer, etcd_server, text
from tests.waiting import eventually

DEAD = "127.0.0.1:1"


def record(record_id: str = "w1", value: bytes = b'{"a":1}') -> Record:
    return Record(kind="worker", id=record_id, value=value)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def discovery(options: DiscoveryOptions, **settings: Any) -> AsyncIterator[EtcdDiscovery]:
    made = EtcdDiscovery(options, **settings)
    try:
        yield made
    finally:
        async with asyncio.timeout(15):
            await made.close()


class Watcher:
    """What a watch has told, and what is known from it."""

    def __init__(self) -> None:
        self.told: list[Change] = []
        self.known: dict[str, bytes] = {}

    async def run(self, watched: EtcdDiscovery) -> None:
        async for change in watched.watch("worker"):
            self.told.append(change)
            match change:
                case Snapshot(records=records):
                    self.known = {one.id: one.value for one in records}
                case Put(record=one):
                    assert self.known.get(one.id) != one.value, "told twice"
                    self.known[one.id] = one.value
                case Delete(id=gone):
                    del self.known[gone]

    def deleted(self) -> list[str]:
        return [change.id for change in self.told if isinstance(change, Delete)]

    def values_of(self, record_id: str) -> list[bytes]:
        puts = [change.record for change in self.told if isinstance(change, Put)]
        return [one.value for one in puts if one.id == record_id]


@asynccontextmanager
async def watching(options: DiscoveryOptions) -> AsyncIterator[Watcher]:
    """A watcher of its own, as another process would be; it has its snapshot."""
    watcher = Watcher()
    async with discovery(options) as own, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watcher.run(own))
        await eventually(lambda: bool(watcher.told))
        yield watcher
        await own.close()
        await task


HOLDER = """
import asyncio, sys
from runtime.discovery import Record
from runtime.discovery_etcd import EtcdDiscovery
from runtime.options_discovery import DiscoveryOptions
async def main():
    options = DiscoveryOptions(
        discovery="etcd", etcd_endpoints=(sys.argv[1],), etcd_lease_ttl=int(sys.argv[2]))
    await EtcdDiscovery(options).register(Record(kind="worker", id="w1", value=b"{}"))
    print("registered", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@contextmanager
def holder(etcd: EtcdServer) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, etcd.url, str(TTL_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"registered\n"
            yield process
        finally:
            process.kill()


async def test_a_killed_holders_record_goes_within_its_ttl_and_a_second(etcd):
    with holder(etcd) as process:
        async with watching(etcd.options()) as watcher:
            assert watcher.known == {"w1": b"{}"}
            process.kill()
            began = time.monotonic()
            await eventually(lambda: watcher.known == {}, look_every_s=0.01)
            print(f"deleted after {time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < TTL_S + 1


async def test_nothing_is_lost_or_doubled_when_etcd_dies_while_records_change(etcd):
    async with discovery(etcd.options()) as owner, watching(etcd.options()) as watcher:
        changing, stays = await owner.register(record("changing")), record("stays")
        await owner.register(stays)
        back = asyncio.Event()
        last = 0

        async def change() -> None:
            nonlocal last
            while not back.is_set():
                last += 1
                await changing.update(b"%d" % last)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change())
            await eventually(lambda: watcher.known.get("changing", b"").isdigit())
            await asyncio.to_thread(etcd.kill)
            registering = tasks.create_task(owner.register(record("meanwhile")))
            await asyncio.to_thread(etcd.start)
            await registering
            back.set()
        expected = {"changing": b"%d" % last, "stays": stays.value, "meanwhile": b'{"a":1}'}
        await eventually(lambda: watcher.known == expected)
        values = [int(value) for value in watcher.values_of("changing") if value.isdigit()]
        assert values == sorted(set(values))
        assert watcher.deleted() == []


async def test_what_a_compaction_has_swallowed_during_an_outage_is_told(etcd):
    for name in ("kept", "removed"):
        etcd.put(f"/penstock/worker/{name}", b"1")
    async with watching(etcd.options()) as watcher, asyncio.timeout(20):
        assert watcher.known == {"kept": b"1", "removed": b"1"}
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(changed_unseen, etcd)
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: watcher.known == {"kept": b"2", "added": b"3"})
        assert watcher.deleted() == ["removed"]


def changed_unseen(etcd: EtcdServer) -> None:
    with etcd.elsewhere():
        etcd.put("/penstock/worker/kept", b"2")
        etcd.put("/penstock/worker/added", b"3")
        etcd.post("kv/deleterange", key=text(b"/penstock/worker/removed"))
        etcd.compact()


async def test_nobody_is_dropped_because_etcd_was_frozen_beyond_the_leases(etcd):
    async with discovery(etcd.options()) as owner, watching(etcd.options()) as watcher:
        lease = await owner.register(record())
        await eventually(lambda: watcher.known == {"w1": b'{"a":1}'})
        before = etcd.leases()
        etcd.freeze()
        # The leases must run out on etcd's clock.
        await asyncio.sleep(2 * TTL_S)
        etcd.thaw()
        await eventually(lambda: bool(set(etcd.leases()) - set(before)), look_every_s=0.05)
        await lease.update(b'{"a":2}')
        await eventually(lambda: watcher.known == {"w1": b'{"a":2}'})
        assert watcher.deleted() == []


async def test_what_ran_out_while_etcd_was_frozen_may_come_back_unnoticed(etcd):
    etcd.put_leased("/penstock/worker/w1", b"1")
    etcd.put_leased("/penstock/worker/w2", b"1")
    async with watching(etcd.options()) as watcher:
        assert watcher.known == {"w1": b"1", "w2": b"1"}
        etcd.freeze()
        # The leases must run out on etcd's clock.
        await asyncio.sleep(2 * TTL_S)
        etcd.thaw()
        await eventually(lambda: etcd.get("/penstock/worker/w1") is None, look_every_s=0.02)
        etcd.put("/penstock/worker/marker", b"1")
        await eventually(lambda: "marker" in watcher.known)
        etcd.put("/penstock/worker/w1", b"2")
        await eventually(lambda: watcher.known == {"w1": b"2", "marker": b"1"})
        assert watcher.deleted() == ["w2"]


async def test_an_etcd_where_nothing_happens_is_not_taken_for_dead(etcd, caplog):
    async with watching(etcd.options()) as watcher:
        # Several times as long as a server may be silent.
        await asyncio.sleep(3 * TTL_S)
        assert watcher.told == [Snapshot(records=())]
    assert "no word" not in caplog.text


async def test_a_revoked_lease_is_replaced_under_the_same_id(etcd):
    async with discovery(etcd.options()) as owner, watching(etcd.options()) as watcher:
        await owner.register(record())
        await eventually(lambda: watcher.known == {"w1": b'{"a":1}'})
        for lease in etcd.leases():
            etcd.post("lease/revoke", ID=lease)
        await eventually(lambda: watcher.told[-2:] == [gone(), Put(record=record())])


def gone(record_id: str = "w1") -> Delete:
    return Delete(kind="worker", id=record_id)


async def test_a_lost_record_is_left_to_who_has_registered_it_since(etcd, caplog):
    async with discovery(etcd.options()) as owner, watching(etcd.options()) as watcher:
        lease = await owner.register(record())
        (own,) = etcd.leases()
        etcd.put("/penstock/worker/w1", b'"another"')
        etcd.post("lease/revoke", ID=own)
        await eventually(lambda: "taken over" in caplog.text)
        await lease.update(b'"mine"')
        await lease.withdraw()
        await eventually(lambda: watcher.known == {"w1": b'"another"'})
        await eventually(lambda: etcd.leases() == [])


async def test_a_withdrawal_right_after_an_outage_is_told_at_once(etcd):
    ttl_s = 10
    options = etcd.options(etcd_lease_ttl=ttl_s)
    async with discovery(options) as owner, watching(options) as watcher:
        lease = await owner.register(record())
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.start)
        await owner.register(record("w2"))
        await eventually(lambda: "w2" in watcher.known)
        began = time.monotonic()
        await lease.withdraw()
        await eventually(lambda: "w1" not in watcher.known)
        assert time.monotonic() - began < ttl_s / 3


@pytest.fixture(params=["dead", "mute"])
def bad_endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """One that refuses connections, or one that takes them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield f"{host}:{port}" if request.param == "mute" else DEAD


async def test_a_dead_endpoint_is_passed_over(etcd, bad_endpoint):
    options = etcd.options(etcd_endpoints=(f"http://{bad_endpoint},{etcd.url}",))
    async with discovery(options) as owner, watching(options) as watcher:
        await owner.register(record())
        await eventually(lambda: watcher.known == {"w1": b'{"a":1}'})
        assert etcd.get("/penstock/worker/w1") == b'{"a":1}'


async def test_a_missing_etcd_is_waited_for_and_then_an_error(etcd, caplog):
    caplog.set_level("INFO")
    etcd.kill()
    async with discovery(etcd.options(), start_s=0.5) as owner:
        with pytest.raises(EtcdFailed, match=rf"{etcd.address}.*\(tried for 0.5 s\)"):
            await owner.register(record())
    refused = [line for line in caplog.messages if "trying again" in line]
    assert len(refused) == len(set(refused)) > 0
    async with discovery(etcd.options()) as owner, asyncio.TaskGroup() as tasks:
        registering = tasks.create_task(owner.register(record()))
        await asyncio.to_thread(etcd.start)
        await registering
        assert etcd.get("/penstock/worker/w1") == b'{"a":1}'
    assert "etcd answers again" in caplog.text


async def test_closing_does_not_wait_for_an_etcd_that_is_gone(etcd, caplog):
    owner = EtcdDiscovery(etcd.options())
    await owner.register(record())
    await owner.register(record("w2"))
    etcd.kill()
    async with asyncio.timeout(2 * TTL_S):
        await owner.close()
    assert "/penstock/worker/w2 stays in etcd until its lease ends" in caplog.text


async def test_keys_that_are_no_records_are_ignored(etcd, caplog):
    for key, value in (("a/b", b"1"), ("Ä", b"1"), ("broken", b"{"), ("good", b"1")):
        etcd.put(f"/penstock/worker/{key}", value)
    async with watching(etcd.options()) as watcher:
        assert watcher.known == {"good": b"1"}
    assert "ignoring /penstock/worker/broken in etcd" in caplog.text


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[EtcdServer, dict[str, Path]]]:
    """An etcd that asks for certificates, and the options of a client that has one."""
    authority = Authority(tmp_path, "own")
    tls, _ = authority.server(client_ca=authority.file)
    me = authority.identity("client", "client@localhost")
    mine = {"etcd_tls_ca": authority.file, "etcd_tls_cert": me.cert, "etcd_tls_key": me.key}
    with etcd_server(tmp_path, tls) as server:
        yield server, mine


async def test_tls_with_certificates_on_both_sides(guarded, tmp_path):
    etcd, mine = guarded
    async with discovery(etcd.options(**mine)) as owner:
        await owner.register(record())
        async with watching(etcd.options(**mine)) as watcher:
            assert watcher.known == {"w1": b'{"a":1}'}
    no_certificate = {"etcd_tls_ca": mine["etcd_tls_ca"]}
    wrong_authority = mine | {"etcd_tls_ca": Authority(tmp_path, "strange").file}
    for wrong in (no_certificate, wrong_authority):
        async with discovery(etcd.options(**wrong), start_s=0.3) as refused:
            with pytest.raises(EtcdFailed, match=etcd.address):
                await refused.register(record())


async def test_a_password_is_sent_again_to_an_etcd_that_has_forgotten_its_logins(
    etcd, tmp_path, caplog
):
    await asyncio.to_thread(etcd.protect, "penstock", "s3cret")
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    options = etcd.options(etcd_user="penstock", etcd_password_file=password)
    async with discovery(options) as owner, watching(options) as watcher:
        lease = await owner.register(record())
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.start)
        await lease.update(b"2")
        await eventually(lambda: watcher.known == {"w1": b"2"})
        await asyncio.to_thread(etcd.forget_logins)
        await lease.update(b"3")
        await eventually(lambda: watcher.known == {"w1": b"3"})
        await asyncio.to_thread(etcd.forget_logins)
        await owner.register(record("w2"))
        await eventually(lambda: "w2" in watcher.known)
    assert "invalid auth token" not in caplog.text


@pytest.mark.parametrize(
    ("login", "why"),
    [
        ({"etcd_user": "penstock", "etcd_password": "wrong"}, "authentication failed"),
        ({}, "user name is empty"),
        ({"etcd_user": "nobody", "etcd_password": "x"}, "permission denied"),
    ],
)
async def test_who_is_not_let_in_is_told_at_once(etcd, login, why):
    await asyncio.to_thread(etcd.protect, "penstock", "s3cret", nobody="x")
    async with asyncio.timeout(5), discovery(etcd.options(**login)) as stranger:
        with pytest.raises(InvalidConfig, match=why):
            await stranger.register(record())
        with pytest.raises(InvalidConfig, match=why):
            await anext(stranger.watch("worker"))


async def test_a_user_where_etcd_demands_none_is_no_error(etcd):
    async with discovery(etcd.options(etcd_user="me", etcd_password="any")) as owner:
        await owner.register(record())
        assert etcd.get("/penstock/worker/w1") == b'{"a":1}'
