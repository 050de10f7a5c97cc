"""Discovery in an etcd cluster: records under leases, followed revision by revision.

A record is the key <prefix>/<kind>/<id>, attached to a lease of its own. Who registers the same id
elsewhere attaches the key to another lease, so that a comparison of leases tells whose it is.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from runtime.discovery import Change, Lease, Record, Snapshot
from runtime.discovery_changes import changes_between, check_name, check_record, check_value
from runtime.errors import InternalError, InvalidConfig
from runtime.etcd_client import EtcdClient, EtcdFailed, EtcdRefused
from runtime.etcd_mirror import EtcdMirror
from runtime.etcd_pb2 import Compare, PutRequest, RequestOp, TxnRequest
from runtime.options_discovery import DiscoveryOptions

_LOG = logging.getLogger(__name__)
# How long a start waits for an etcd that does not answer.
_START_S = 30.0
_RETRY_MAX_S = 1.0
_CALL_S = 5.0
_WITHDRAW_S = 5.0
# How often a watch must show a sign of life: no quicker than a busy event loop can tell.
_LEAST_BEAT_S, _MOST_BEAT_S = 1.0, 10.0


class EtcdDiscovery:
    """Implements runtime.discovery.Discovery on etcd 3.4 or later; made in a running event loop.

    `register` and `watch` wait `start_s` for an etcd that does not answer, then raise EtcdFailed;
    InvalidConfig if it does not let the user in. Later on etcd may go and come: watchers keep what
    they know, and records whose leases were lost are registered again under their ids.
    """

    def __init__(self, options: DiscoveryOptions, *, start_s: float = _START_S) -> None:
        self._ttl_s = options.etcd_lease_ttl
        self._prefix = options.etcd_prefix
        self._start_s = start_s
        self._beat_s = min(max(_LEAST_BEAT_S, self._ttl_s / 3), _MOST_BEAT_S)
        self._client = EtcdClient(
            options, timeout_s=min(_CALL_S, self._beat_s), beat_s=self._beat_s
        )
        self._complaints: set[str] = set()
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._mirrors: set[EtcdMirror] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def register(self, record: Record) -> Lease:
        """Register or replace a record. Raises InvalidConfig for a bad name or value."""
        check_record(record)
        key = f"{self._prefix}/{record.kind}/{record.id}".encode()
        lease = _Lease(self, self._client, key, record.value, self._ttl_s)
        await self._at_start(lease.establish)
        replaced = self._leases.pop((record.kind, record.id), None)
        self._leases[record.kind, record.id] = lease
        lease.keeping = await self._run(lease.renew_when_due)
        if replaced is not None:
            await replaced.let_go()
        return lease

    async def watch(self, kind: str) -> AsyncGenerator[Change, None]:
        """Yield a Snapshot of `kind`, then its changes; ends after `close`."""
        check_name("kind", kind)
        if self._closed:
            return
        mirror = EtcdMirror(
            self._client,
            f"{self._prefix}/{kind}/",
            ttl_s=self._ttl_s,
            beat_s=self._beat_s,
            on_failure=self.complain,
            on_answer=self.note_answer,
        )
        await self._at_start(mirror.load)
        self._mirrors.add(mirror)
        following = await self._run(mirror.follow)
        try:
            known = dict(mirror.records)
            yield Snapshot(
                records=tuple(Record(kind=kind, id=i, value=v) for i, v in known.items())
            )
            while not self._closed:
                await mirror.changed.wait()
                mirror.changed.clear()
                current = dict(mirror.records)
                for change in changes_between(kind, known, current):
                    yield change
                known = current
        finally:
            following.cancel()
            self._mirrors.discard(mirror)

    async def close(self) -> None:
        """Withdraw all records of this object and end its watches. Idempotent."""
        self._closed = True
        async with asyncio.TaskGroup() as leaving:
            for lease in self._leases.values():
                leaving.create_task(lease.withdraw())
        self._leases.clear()
        for mirror in self._mirrors:
            mirror.changed.set()
        for task in self._running:
            task.cancel()
        if self._tasks is not None:
            await self._tasks.__aexit__(None, None, None)
            self._tasks = None
        await self._client.close()

    def complain(self, error: BaseException) -> None:
        """Log why etcd does not do what it should, each reason once until it answers again."""
        if not isinstance(error, EtcdFailed):
            _LOG.error("unexpected error in discovery", exc_info=error)
        elif error.message not in self._complaints:
            self._complaints.add(error.message)
            _LOG.warning("%s; trying again", error.message)

    def note_answer(self) -> None:
        """Log that etcd is back, if it was away."""
        if self._complaints:
            self._complaints.clear()
            _LOG.info("etcd answers again")

    def retrying(self, **settings: Any) -> AsyncRetrying:
        """Return what repeats an attempt that failed, with a growing pause up to a second."""
        return AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=_RETRY_MAX_S),
            before_sleep=self._note_failure,
            reraise=True,
            **settings,
        )

    def _note_failure(self, state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        if error is not None:
            self.complain(error)

    async def _at_start(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do what somebody waits for."""
        if self._closed:
            raise InternalError("discovery is closed")
        unless_refused = retry_if_exception_type(EtcdFailed) & retry_if_not_exception_type(
            EtcdRefused
        )
        try:
            async for attempt in self.retrying(
                retry=unless_refused, stop=stop_after_delay(self._start_s)
            ):
                with attempt:
                    await action()
        except EtcdRefused as error:
            raise InvalidConfig(error.message, param="etcd_user") from error
        except EtcdFailed as error:
            raise EtcdFailed(f"{error.message} (tried for {self._start_s:g} s)") from error
        self.note_answer()

    async def _run(self, action: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Let `action` run, again whenever it returns or fails, until it is cancelled."""
        if self._tasks is None:
            self._tasks = asyncio.TaskGroup()
            await self._tasks.__aenter__()
        task = self._tasks.create_task(self._repeat(action))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        # What works for a while starts the pauses afresh. A defect must not end discovery.
        whatever = retry_if_exception_type(Exception)
        while True:
            async for attempt in self.retrying(retry=whatever, stop=stop_never):
                with attempt:
                    await action()


class _Lease:
    """One record and its lease. `renew_when_due` runs all the time."""

    def __init__(
        self, discovery: EtcdDiscovery, client: EtcdClient, key: bytes, value: bytes, ttl_s: int
    ) -> None:
        self.keeping: asyncio.Task[None] | None = None
        self._discovery = discovery
        self._client = client
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._id = 0
        # Set while the record is to be written, and while it may be gone with a lost lease.
        self._unwritten = False
        self._lost = False
        self._ended = False
        self._due = asyncio.Event()
        self._lock = asyncio.Lock()

    async def establish(self) -> None:
        """Write the record, whoever has it. Raises EtcdFailed."""
        self._id = await self._client.grant(self._ttl_s)
        await self._client.txn(TxnRequest(success=[self._put(self._value)]))

    async def renew_when_due(self) -> None:
        """Wait for a third of the ttl, or for a value to write, and renew."""
        if not (self._unwritten or self._lost):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / 3):
                    await self._due.wait()
        self._due.clear()
        await self._renew()
        self._discovery.note_answer()

    async def update(self, value: bytes) -> None:
        check_value(value)
        if self._ended:
            return
        self._value, self._unwritten = value, True
        try:
            await self._renew()
        except EtcdFailed as error:
            self._discovery.complain(error)
            self._due.set()

    async def withdraw(self) -> None:
        if self._ended:
            return
        self._stop()
        # Longer than its lease it does not stay anyway.
        limit_s = min(self._ttl_s, _WITHDRAW_S)
        once_more = self._discovery.retrying(
            retry=retry_if_exception_type(EtcdFailed), stop=stop_after_delay(limit_s)
        )
        try:
            async for attempt in once_more:
                with attempt:
                    await self._remove()
        except EtcdFailed as error:
            _LOG.warning(
                "%s stays in etcd until its lease ends, %d s at most: %s",
                self._key.decode(), self._ttl_s, error.message,
            )  # fmt: skip

    async def let_go(self) -> None:
        """Renew no more what another lease has taken."""
        self._ended = True
        self._lost = self._unwritten = False
        with suppress(EtcdFailed):
            await self._client.revoke(self._id)
        self._stop()

    def _stop(self) -> None:
        self._ended = True
        self._lost = self._unwritten = False
        if self.keeping is not None:
            self.keeping.cancel()

    async def _renew(self) -> None:
        async with self._lock:
            if self._ended:
                return
            if not await self._client.keep_alive(self._id):
                self._lost = self._unwritten = True
                self._id = await self._client.grant(self._ttl_s)
            if self._unwritten:
                await self._write()

    async def _write(self) -> None:
        """Write the value where the record is ours, or is nobody's since our lease was lost."""
        value = self._value
        ours = await self._put_if(self._lease_is_ours(), value)
        if not ours and self._lost:
            ours = await self._put_if(self._is_absent(), value)
        if not ours:
            _LOG.warning("%s in etcd was taken over by another process", self._key.decode())
            await self.let_go()
            return
        if self._lost:
            _LOG.info("%s was registered in etcd again", self._key.decode())
        self._lost, self._unwritten = False, self._value != value

    async def _remove(self) -> None:
        async with self._lock:
            # Empty for a moment: that tells a withdrawal from a lease that ran out.
            await self._put_if(self._lease_is_ours(), b"")
            await self._client.revoke(self._id)

    async def _put_if(self, condition: Compare, value: bytes) -> bool:
        request = TxnRequest(compare=[condition], success=[self._put(value)])
        return (await self._client.txn(request)).succeeded

    def _put(self, value: bytes) -> RequestOp:
        return RequestOp(request_put=PutRequest(key=self._key, value=value, lease=self._id))

    def _lease_is_ours(self) -> Compare:
        return Compare(target=Compare.LEASE, key=self._key, lease=self._id)

    def _is_absent(self) -> Compare:
        return Compare(target=Compare.CREATE, key=self._key, create_revision=0)
