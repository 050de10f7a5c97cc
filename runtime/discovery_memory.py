"""Discovery within one process: for tests, and for a front door with its workers in one."""

import asyncio
from collections.abc import AsyncGenerator

from runtime.discovery import Change, Lease, Record, Snapshot
from runtime.discovery_changes import changes_between, check_name, check_record, check_value


class MemoryDiscovery:
    """Implements runtime.discovery.Discovery on one event loop; leases last until withdrawn."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], tuple[bytes, _Lease]] = {}
        self._wakers: set[asyncio.Event] = set()
        self._closed = False

    async def register(self, record: Record) -> Lease:
        """Register or replace a record. Raises InvalidConfig for a bad name or value."""
        check_record(record)
        lease = _Lease(self, record.kind, record.id)
        self.put(lease, record.value)
        return lease

    async def watch(self, kind: str) -> AsyncGenerator[Change, None]:
        """Yield a Snapshot of `kind`, then its changes; ends after `close`."""
        check_name("kind", kind)
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            known = self._state(kind)
            yield Snapshot(
                records=tuple(Record(kind=kind, id=i, value=v) for i, v in known.items())
            )
            while not self._closed:
                await waker.wait()
                waker.clear()
                current = self._state(kind)
                for change in changes_between(kind, known, current):
                    yield change
                known = current
        finally:
            self._wakers.discard(waker)

    async def close(self) -> None:
        """Withdraw all records and end all watches."""
        self._closed = True
        self._records.clear()
        self._wake()

    def put(self, lease: "_Lease", value: bytes) -> None:
        """Set the value of a lease's record and make the lease its owner."""
        self._records[lease.key] = (value, lease)
        self._wake()

    def remove(self, lease: "_Lease") -> None:
        """Remove a lease's record unless another lease has replaced it."""
        if self.owns(lease):
            del self._records[lease.key]
            self._wake()

    def owns(self, lease: "_Lease") -> bool:
        """Whether the record of this lease is still the lease's own."""
        return self._records.get(lease.key, (b"", None))[1] is lease

    def _state(self, kind: str) -> dict[str, bytes]:
        return {k[1]: value for k, (value, _) in self._records.items() if k[0] == kind}

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()


class _Lease:
    def __init__(self, discovery: MemoryDiscovery, kind: str, record_id: str) -> None:
        self._discovery = discovery
        self.key = (kind, record_id)

    async def update(self, value: bytes) -> None:
        check_value(value)
        if self._discovery.owns(self):
            self._discovery.put(self, value)

    async def withdraw(self) -> None:
        self._discovery.remove(self)
