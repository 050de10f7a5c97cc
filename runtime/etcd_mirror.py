"""One kind's records as etcd has them: listed once, then followed revision by revision."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from runtime.discovery_changes import check_name, check_value
from runtime.errors import InvalidConfig
from runtime.etcd_client import EtcdClient, EtcdFailed
from runtime.etcd_pb2 import Event, KeyValue, WatchResponse

_LOG = logging.getLogger(__name__)


class EtcdMirror:
    """The records below `prefix`, which ends with a slash.

    `records` is {id: value} and stays while etcd is away. `changed` is set when it may differ from
    before. After an outage a record whose lease has run out is kept for another `ttl_s`: its owner
    could not renew it either. Only withdrawn ones, which have an empty value for a moment, go at
    once. `on_failure` is told why etcd cannot be followed, `on_answer` when it can.
    """

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        *,
        ttl_s: float,
        beat_s: float,
        on_failure: Callable[[EtcdFailed], None],
        on_answer: Callable[[], None],
    ) -> None:
        self.records: dict[str, bytes] = {}
        self.changed = asyncio.Event()
        self._client = client
        self._prefix = prefix
        self._key = prefix.encode()
        # What follows a slash in ASCII: the end of all keys that begin with the prefix.
        self._range_end = prefix[:-1].encode() + b"0"
        self._ttl_s = ttl_s
        self._beat_s = beat_s
        self._on_failure = on_failure
        self._on_answer = on_answer
        self._loop = asyncio.get_running_loop()
        # The store's revision that `records` stands for; None when it is to be listed.
        self._revision: int | None = None
        self._heard_s = self._loop.time()
        self._had_outage = False
        self._doubted: set[str] = set()
        self._doubting: asyncio.TimerHandle | None = None

    async def load(self) -> None:
        """List the records. Raises EtcdFailed."""
        answer = await self._client.range(self._key, self._range_end)
        found = {self._id_of(pair): pair for pair in answer.kvs}
        for gone in self.records.keys() - found:
            self._expired(gone)
        for record_id, pair in found.items():
            self._put(record_id, pair)
        self._revision = answer.header.revision
        self._on_answer()

    async def follow(self) -> None:
        """Follow etcd until the stream breaks or its revisions are gone.

        Returns once it had worked, and raises EtcdFailed when it had not.
        """
        if self._revision is None:
            await self.load()
        assert self._revision is not None
        works = False
        # From what is known: etcd 3.6.2, and the older releases that got the same change (etcd
        # pull request 20229), answer nothing to a watch from a revision still to come.
        responses = self._client.watch(self._key, self._range_end, self._revision)
        try:
            async with aclosing(responses):
                async for response in responses:
                    self._note_gap()
                    if response.compact_revision:
                        self._revision = None
                        return
                    works = works or not response.created
                    self._take(response)
                    self._on_answer()
        except EtcdFailed as error:
            if not works:
                raise
            self._on_failure(error)
        finally:
            self._had_outage = True
            self._stop_doubting()

    def _take(self, response: WatchResponse) -> None:
        known = self._revision or 0
        for event in response.events:
            if event.kv.mod_revision <= known:
                continue
            record_id = self._id_of(event.kv)
            if event.type == Event.EventType.PUT:
                self._put(record_id, event.kv)
            else:
                self._expired(record_id)
            self._revision = event.kv.mod_revision
        # An answer to a question (-1) may overtake events (etcd issue 15220).
        if not (response.events or response.created) and response.watch_id >= 0:
            self._revision = max(known, response.header.revision)

    def _put(self, record_id: str, pair: KeyValue) -> None:
        self._doubted.discard(record_id)
        if not pair.value:
            self.records.pop(record_id, None)
        elif self.records.get(record_id) != pair.value and self._is_record(record_id, pair):
            self.records[record_id] = pair.value
        self.changed.set()

    def _expired(self, record_id: str) -> None:
        if self._doubting is not None or self._had_outage:
            self._doubted.add(record_id)
        else:
            self.records.pop(record_id, None)
            self.changed.set()

    def _is_record(self, record_id: str, pair: KeyValue) -> bool:
        try:
            check_name("id", record_id)
            check_value(pair.value)
        except InvalidConfig as error:
            _LOG.warning("ignoring %s%s in etcd: %s", self._prefix, record_id, error)
            return False
        return True

    def _id_of(self, pair: KeyValue) -> str:
        return pair.key[len(self._key) :].decode("utf-8", "backslashreplace")

    def _note_gap(self) -> None:
        """A server that was silent may have let leases run out: doubt that for a while."""
        now = self._loop.time()
        if self._had_outage or now - self._heard_s > 1.5 * self._beat_s:
            self._had_outage = False
            self._stop_doubting()
            self._doubting = self._loop.call_later(self._ttl_s, self._settle)
        self._heard_s = now

    def _stop_doubting(self) -> None:
        if self._doubting is not None:
            self._doubting.cancel()
        self._doubting = None

    def _settle(self) -> None:
        self._doubting = None
        for record_id in self._doubted:
            self.records.pop(record_id, None)
        self._doubted.clear()
        self.changed.set()
