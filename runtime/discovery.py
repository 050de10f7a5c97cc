"""Who is there: the contract of every discovery back end.

A back end keeps small records under a lease and tells watchers about them. It does not look into
a record's value.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One registered thing. `kind` and `id` match [a-z0-9._-]+; `value` is JSON bytes."""

    kind: str
    id: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything of the watched kind at one moment: replaces what the watcher knew."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """A record appeared or its value changed."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """A record was withdrawn, or its lease expired."""

    kind: str
    id: str


Change = Snapshot | Put | Delete


class Lease(Protocol):
    """Keeps one record registered until `withdraw` or until its owner dies."""

    async def update(self, value: bytes) -> None:
        """Replace the record's value."""
        ...

    async def withdraw(self) -> None:
        """Remove the record; watchers see a Delete. Idempotent."""
        ...


class Discovery(Protocol):
    """A discovery back end.

    `register` returns once the record is visible to new watchers. `watch` yields one Snapshot
    first and changes after it, in order; after a gap it yields a fresh Snapshot, so a consumer
    needs no other recovery. A Put with an equal value is not repeated. Closing the iterator ends
    the watch. `close` withdraws every record of this object.
    """

    async def register(self, record: Record) -> Lease:
        """Register or replace a record under a lease."""
        ...

    def watch(self, kind: str) -> AsyncGenerator[Change, None]:
        """Yield a Snapshot of `kind`, then its changes, until closed."""
        ...

    async def close(self) -> None:
        """Withdraw all records of this object and free its resources. Idempotent."""
        ...
