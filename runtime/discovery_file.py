"""Discovery on one machine: a folder with one small JSON file per record.

A record's lease is its file's modification time, renewed by the owner every third of the ttl. The
file also names its owner's process, so that on the same machine a record goes with its process
and not a ttl later.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import msgspec
from watchfiles import awatch

from runtime.discovery import Change, Lease, Record, Snapshot
from runtime.discovery_changes import changes_between, check_name, check_record, check_value
from runtime.errors import InvalidConfig
from runtime.process import NO_DESCRIPTORS, pid_place, start_mark

_LOG = logging.getLogger(__name__)
_SCAN_S = 0.25
_FORGET_TTLS = 10


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What a record's file holds. `lease` tells a record from a later one of the same name."""

    pid: int
    start: str
    place: str
    lease: str
    value: msgspec.Raw


class FileDiscovery:
    """Implements runtime.discovery.Discovery in `folder`, which is made if missing.

    A record is at folder/<kind>/<id>.json, replaced by renaming, so that readers never see half a
    file. Watchers notice changes through the kernel and look themselves every quarter second for
    what makes no event: leases that run out and owners that died. Give all processes the same
    `ttl_s`. Raises InvalidConfig if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, ttl_s: float = 10.0) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._leases: set[_Lease] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stops: set[asyncio.Event] = set()
        self._closed = False
        self._place = pid_place()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfig(
                f"cannot use discovery folder {folder}: {error.strerror}", param="discovery_path"
            ) from error

    async def register(self, record: Record) -> Lease:
        """Register or replace a record. Raises InvalidConfig for a bad name, value or folder."""
        check_record(record)
        pid = os.getpid()
        lease = _Lease(
            self,
            self._folder / record.kind / f"{record.id}.json",
            _Envelope(
                pid=pid,
                start=start_mark(pid) or "",
                place=self._place,
                lease=secrets.token_hex(8),
                value=msgspec.Raw(record.value),
            ),
        )
        lease.write()
        self._leases.add(lease)
        if self._timer is None:
            self._schedule_beat()
        return lease

    async def watch(self, kind: str) -> AsyncGenerator[Change, None]:
        """Yield a Snapshot of `kind`, then its changes; ends after `close`."""
        check_name("kind", kind)
        stop = asyncio.Event()
        self._stops.add(stop)
        if self._closed:
            stop.set()
        scan = _Scan(self._folder / kind, self._ttl_s, self._place)
        ticks = awatch(
            scan.folder,
            watch_filter=None,
            recursive=False,
            debounce=100,
            stop_event=stop,
            rust_timeout=int(min(_SCAN_S, self._ttl_s / 4) * 1000),
            yield_on_timeout=True,
        )
        try:
            known = scan.live()
            yield Snapshot(
                records=tuple(Record(kind=kind, id=i, value=v) for i, v in known.items())
            )
            async with aclosing(ticks):
                async for _ in ticks:
                    try:
                        current = scan.live()
                    except OSError as error:
                        # What is known stays: it says nothing about the records.
                        _LOG.warning("cannot read %s: %s", scan.folder, error.strerror)
                        continue
                    for change in changes_between(kind, known, current):
                        yield change
                    known = current
        finally:
            stop.set()
            self._stops.discard(stop)

    async def close(self) -> None:
        """Withdraw all records of this object and end its watches. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for lease in tuple(self._leases):
            await lease.withdraw()
        for stop in self._stops:
            stop.set()

    def forget(self, lease: "_Lease") -> None:
        """Stop renewing a lease."""
        self._leases.discard(lease)

    def _schedule_beat(self) -> None:
        # A timer of the loop, not a thread: an owner whose loop hangs should lose its lease.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._ttl_s / 3, self._beat)

    def _beat(self) -> None:
        for lease in tuple(self._leases):
            try:
                lease.renew()
            except (OSError, InvalidConfig) as error:
                _LOG.warning("cannot renew discovery record %s: %s", lease.path, error)
        self._schedule_beat()


class _Lease:
    def __init__(self, discovery: FileDiscovery, path: Path, envelope: _Envelope) -> None:
        self._discovery = discovery
        self.path = path
        self._envelope = envelope
        self._withdrawn = False

    async def update(self, value: bytes) -> None:
        check_value(value)
        if not self._withdrawn and self._is_ours():
            self._envelope = msgspec.structs.replace(self._envelope, value=msgspec.Raw(value))
            self.write()

    async def withdraw(self) -> None:
        self._withdrawn = True
        self._discovery.forget(self)
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def write(self) -> None:
        """Put the record's file in place at once as a whole."""
        draft = self.path.with_name(f".{self.path.name}.{self._envelope.lease}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(self._envelope))
            draft.replace(self.path)
        except OSError as error:
            raise InvalidConfig(
                f"cannot write discovery record {self.path}: {error.strerror}",
                param="discovery_path",
            ) from error

    def renew(self) -> None:
        """Set the file's time to now; a file that somebody removed is written again."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            self.write()

    def _is_ours(self) -> bool:
        stored = None
        with suppress(OSError):
            stored = _read(self.path)
        return stored is None or stored.lease == self._envelope.lease


class _Scan:
    """Reads one kind's folder and judges which records are alive.

    A lease's age is measured on this process's monotonic clock from the last change of the file's
    time, so that a stepped wall clock expires nobody; only a file seen for the first time is
    compared with the file system's own idea of now.
    """

    def __init__(self, folder: Path, ttl_s: float, place: str) -> None:
        self.folder = folder
        self._ttl_s = ttl_s
        self._place = place
        self._seen: dict[str, tuple[int, float, _Envelope | None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def live(self) -> dict[str, bytes]:
        """Return {id: value} of the records whose lease and owner live, ordered by id."""
        found: dict[str, bytes] = {}
        seen, now = {}, time.monotonic()
        for path in self._files():
            entry = self._look(path, now)
            if entry is None:
                continue
            seen[path.name] = entry
            _, renewed, envelope = entry
            if envelope is None:
                continue
            if now - renewed <= self._ttl_s and self._owner_lives(envelope):
                found[path.name.removesuffix(".json")] = bytes(envelope.value)
            elif now - renewed > self._ttl_s * _FORGET_TTLS:
                path.unlink(missing_ok=True)
        self._seen = seen
        return found

    def _files(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        return [self.folder / n for n in names if n.endswith(".json") and not n.startswith(".")]

    def _look(self, path: Path, now: float) -> tuple[int, float, _Envelope | None] | None:
        try:
            mtime_ns = path.stat().st_mtime_ns
        except OSError:
            return None
        before = self._seen.get(path.name)
        if before is None:
            return mtime_ns, now - self._age_s(mtime_ns), _read(path)
        if before[0] == mtime_ns:
            return before
        return mtime_ns, now, _read(path)

    def _age_s(self, mtime_ns: int) -> float:
        probe = self.folder / f".now.{os.getpid()}"
        with suppress(OSError):
            probe.touch()
            age_s = (probe.stat().st_mtime_ns - mtime_ns) / 1e9
            probe.unlink(missing_ok=True)
            return max(0.0, age_s)
        return 0.0

    def _owner_lives(self, envelope: _Envelope) -> bool:
        return envelope.place != self._place or start_mark(envelope.pid) == envelope.start


def _read(path: Path) -> _Envelope | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Envelope)
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None
    except msgspec.DecodeError as error:
        _LOG.warning("ignoring %s: not a discovery record: %s", path, error)
        return None
