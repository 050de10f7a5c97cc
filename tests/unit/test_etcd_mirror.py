"""From which revision a mirror of etcd's records goes on, and what it makes of what it is told."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from runtime.etcd_client import EtcdFailed
from runtime.etcd_mirror import EtcdMirror
from runtime.etcd_pb2 import Event, KeyValue, RangeResponse, ResponseHeader, WatchResponse


def pair(name: str, value: bytes, revision: int) -> KeyValue:
    return KeyValue(key=b"/p/worker/" + name.encode(), value=value, mod_revision=revision)


def listed(revision: int, *pairs: KeyValue) -> RangeResponse:
    return RangeResponse(header=ResponseHeader(revision=revision), kvs=pairs)


def put(name: str, value: bytes, revision: int) -> WatchResponse:
    return WatchResponse(events=[Event(kv=pair(name, value, revision))])


def deleted(name: str, revision: int) -> WatchResponse:
    return WatchResponse(events=[Event(type=Event.DELETE, kv=pair(name, b"", revision))])


CREATED = WatchResponse(header=ResponseHeader(revision=99), created=True)


class ScriptedClient:
    """Answers as written down: lists in their order, and one list of responses for each watch.

    A watch that has told all of its responses breaks. `began` are the revisions asked for.
    """

    def __init__(
        self, lists: Sequence[RangeResponse], watches: Sequence[Sequence[WatchResponse]]
    ) -> None:
        self._lists = iter(lists)
        self._watches = iter(watches)
        self.began: list[int] = []

    async def range(self, key: bytes, range_end: bytes) -> RangeResponse:
        assert (key, range_end) == (b"/p/worker/", b"/p/worker0")
        return next(self._lists)

    async def watch(
        self, key: bytes, range_end: bytes, start_revision: int
    ) -> AsyncGenerator[WatchResponse, None]:
        assert (key, range_end) == (b"/p/worker/", b"/p/worker0")
        self.began.append(start_revision)
        for response in next(self._watches):
            yield response
        raise EtcdFailed("broken")


async def following(client: ScriptedClient, times: int) -> EtcdMirror:
    """A mirror that has listed and then followed so many streams, each until it broke."""
    mirror = EtcdMirror(
        client,  # type: ignore[arg-type]
        "/p/worker/",
        ttl_s=1000,
        beat_s=1000,
        on_failure=lambda error: None,
        on_answer=lambda: None,
    )
    await mirror.load()
    for _ in range(times):
        await mirror.follow()
    return mirror


async def test_a_watch_goes_on_with_the_last_event_it_has_seen():
    client = ScriptedClient(
        [listed(7, pair("a", b"1", 3))],
        [[CREATED, put("b", b"1", 9), put("b", b"2", 12)], [CREATED, put("b", b"3", 13)]],
    )
    mirror = await following(client, 2)
    assert client.began == [7, 12]
    assert mirror.records == {"a": b"1", "b": b"3"}


async def test_what_it_knows_already_changes_nothing():
    both = WatchResponse(events=[Event(kv=pair("b", b"1", 8)), Event(kv=pair("c", b"1", 8))])
    client = ScriptedClient([listed(7, pair("a", b"2", 7))], [[put("a", b"1", 6), both]])
    mirror = await following(client, 1)
    assert mirror.records == {"a": b"2", "b": b"1", "c": b"1"}


async def test_word_that_nothing_has_happened_moves_it_on_but_not_the_answer_to_a_question():
    idle = WatchResponse(header=ResponseHeader(revision=20), watch_id=0)
    answer = WatchResponse(header=ResponseHeader(revision=30), watch_id=-1)
    client = ScriptedClient([listed(7)], [[CREATED, idle], [CREATED, answer], [CREATED, answer]])
    await following(client, 3)
    assert client.began == [7, 20, 20]


async def test_after_a_compaction_all_is_listed_again():
    compacted = WatchResponse(canceled=True, compact_revision=50)
    client = ScriptedClient(
        [listed(7, pair("a", b"1", 3)), listed(60, pair("a", b"2", 55), pair("b", b"1", 58))],
        [[CREATED, compacted], [CREATED, deleted("b", 61), put("b", b"2", 62)]],
    )
    mirror = await following(client, 2)
    assert client.began == [7, 60]
    assert mirror.records == {"a": b"2", "b": b"2"}


async def test_an_expired_record_goes_at_once_unless_there_was_an_outage():
    client = ScriptedClient(
        [listed(7, pair("a", b"1", 3), pair("b", b"1", 4), pair("c", b"1", 5))],
        [
            [deleted("a", 8)],
            [CREATED, deleted("b", 9), put("c", b"", 10), deleted("c", 11)],
        ],
    )
    mirror = await following(client, 1)
    assert mirror.records == {"b": b"1", "c": b"1"}
    await mirror.follow()
    assert mirror.records == {"b": b"1"}, "withdrawn goes, expired is doubted"


@pytest.mark.parametrize("told", [[], [CREATED]])
async def test_a_stream_that_never_worked_is_an_error(told):
    client = ScriptedClient([listed(7)], [told])
    with pytest.raises(EtcdFailed):
        await following(client, 1)
