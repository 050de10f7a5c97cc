"""A worker's fleet service under a transport in the test's hand: slow readers, pace, ends."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from runtime.errors import InvalidRequest, ServingError, Unsupported
from runtime.rpc import CallHandler, CallInfo
from tests.kv_follower import Follower
from tests.waiting import eventually
from wire.kv_events import KvBatch, Position, decode_batch, watch_request
from wire.penstock_pb2 import KvEventBatch, LoadReport, WatchLoadRequest
from wire.sampling import Sampling
from wire.tokens import TokenRequest
from worker.fleet_service import LOAD_INTERVAL_S, FleetService
from worker.kv_log import KvLog
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming


class ScriptedCall:
    """A transport that takes what the test lets it."""

    def __init__(self) -> None:
        self.info = CallInfo(method="Watch")
        self.room = 1_000_000
        self.sent: list[Any] = []
        self.finished = False
        self.error: ServingError | None = None

    @property
    def writable(self) -> bool:
        return self.room > 0

    def set_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        raise AssertionError("no headers are needed")

    def send(self, message: Any) -> None:
        assert self.writable
        self.room -= 1
        self.sent.append(message)

    def finish(self) -> None:
        self.finished = True

    def fail(self, error: ServingError) -> None:
        self.error = error

    def batches(self) -> list[KvBatch]:
        taken, self.sent = self.sent, []
        return [decode_batch(KvEventBatch.FromString(it.SerializeToString())) for it in taken]

    def reports(self) -> list[LoadReport]:
        return [LoadReport.FromString(data) for data in self.sent]


class Watched:
    """A fleet service over a simulated engine that has the given logs."""

    def __init__(self, *logs: KvLog) -> None:
        self.engine = SimEngine(SimConfig(timing=SimTiming(speedup=1, step_ms=5)))
        self.engine.kv_logs = logs
        self.draining = self.stalled = False
        self.fleet = FleetService(
            self.engine,
            draining=lambda: self.draining,
            stalled=lambda: self.stalled,
            load_look_s=2 * LOAD_INTERVAL_S,
        )

    def call(self, method: str, message: Any = None, room: int = 1_000) -> tuple[Any, CallHandler]:
        call = ScriptedCall()
        call.room = room
        handler = self.fleet.service.streams[method](call)
        if message is not None:
            handler.on_message(message)
        return call, handler

    def kv(self, positions: dict[int, Position] | None = None, room: int = 1_000) -> Any:
        return self.call("WatchKvEvents", watch_request(positions or {}), room)


class Quiet:
    """A sink whose request may do as it likes."""

    def put(self, delta: Any) -> None:
        pass

    def fail(self, error: ServingError) -> None:
        pass


def submit(engine: SimEngine, max_tokens: int = 5000) -> None:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    engine.submit(TokenRequest(request_id="a", token_ids=[1], sampling=sampling), Quiet())


def tell(log: KvLog, *blocks: int) -> None:
    log.store(blocks)
    log.commit(1.0)


async def turn() -> None:
    """Let what is due in this turn of the event loop run."""
    await asyncio.sleep(0)


async def test_ranks_are_told_apart_and_each_resumes_by_itself() -> None:
    first, second = KvLog(0), KvLog(1)
    tell(first, 1)
    tell(second, 2)
    watched = Watched(first, second)
    call, _ = watched.kv({1: Position(second.log_id, 1)})
    (snapshot,) = call.batches()
    assert snapshot.rank == 0
    tell(second, 3, 4)
    tell(second, 5)
    tell(first, 6)
    await turn()
    got = call.batches()
    assert sorted((it.rank, [event.id for event in it.events]) for it in got) == [
        (0, [2]), (1, [2]), (1, [3]),
    ]  # fmt: skip


async def test_a_slow_reader_holds_nothing_and_ends_with_a_snapshot() -> None:
    log = KvLog(max_events=8)
    call, handler = Watched(log).kv(room=3)
    follower = Follower()
    for block in range(1, 30):
        tell(log, block)
        await turn()
    assert len(call.sent) == 3
    call.room = 1_000
    handler.on_writable()
    for batch in call.batches():
        follower.take(batch)
    assert follower.blocks == set(log)
    assert follower.snapshots == 2
    tell(log, 30)
    await turn()
    assert len(call.sent) == 1


async def test_a_snapshot_waits_part_by_part_and_no_rank_for_another() -> None:
    large, small = KvLog(0), KvLog(1)
    tell(large, *range(1, 200_001))
    call, handler = Watched(large, small).kv(room=2)
    assert [it.rank for it in call.batches()] == [0, 1]
    tell(large, 200_001)
    follower = Follower()
    call.room = 1_000
    watched_from_start = Watched(large).kv()[0]
    handler.on_writable()
    parts = [it for it in call.batches() if it.rank == 0]
    assert len(parts) == 4
    for batch in watched_from_start.batches():
        follower.take(batch)
    assert follower.blocks == set(large)


async def test_a_call_that_is_over_is_told_nothing() -> None:
    log = KvLog()
    watched = Watched(log)
    for way in ("on_cancel", "end"):
        call, handler = watched.kv()
        assert watched.fleet.kv_subscribers == 1
        sent = len(call.sent)
        tell(log, log.last_id + 1)
        getattr(handler, way)()
        await turn()
        assert len(call.sent) == sent
        assert (watched.fleet.kv_subscribers, len(log.changed)) == (0, 0)


async def test_a_call_takes_exactly_one_request() -> None:
    for method, message in (
        ("WatchKvEvents", watch_request({})),
        ("WatchLoad", WatchLoadRequest()),
    ):
        watched = Watched(KvLog())
        call, handler = watched.call(method, message)
        handler.on_half_close()
        assert not call.finished
        with pytest.raises(InvalidRequest):
            handler.on_message(message)
        handler.on_cancel()
        call, handler = watched.call(method)
        handler.on_half_close()
        assert isinstance(call.error, InvalidRequest)


async def test_an_engine_that_does_not_tell_has_no_events_to_watch() -> None:
    with pytest.raises(Unsupported):
        Watched().kv()


# ------------------------------------------------------------------------------------- load
async def test_load_is_reported_at_once_and_then_nothing_while_it_stays() -> None:
    watched = Watched()
    call, _ = watched.call("WatchLoad", WatchLoadRequest())
    # The looks of an idle worker.
    await eventually(lambda: watched.fleet.loads.looks == 2, look_every_s=0.05)
    (report,) = call.reports()
    assert [(it.data_parallel_rank, it.running, it.waiting) for it in report.ranks] == [(0, 0, 0)]
    assert (report.steps, report.draining, report.stalled) == (0, False, False)


async def test_steps_are_reported_at_a_bounded_pace() -> None:
    watched = Watched()
    call, _ = watched.call("WatchLoad", WatchLoadRequest())
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    submit(watched.engine)
    await eventually(lambda: len(call.sent) == 4)
    assert loop.time() - began_s >= 2 * LOAD_INTERVAL_S
    steps = [report.steps for report in call.reports()]
    assert steps == sorted(set(steps))
    assert call.reports()[-1].ranks[0].running == 1
    await watched.engine.close()
    await eventually(lambda: call.reports()[-1].ranks[0].running == 0)


async def test_draining_is_reported_when_touched_and_a_stall_by_the_next_look() -> None:
    watched = Watched()
    call, _ = watched.call("WatchLoad", WatchLoadRequest())
    watched.draining = True
    watched.fleet.loads.touch()
    await eventually(lambda: call.reports()[-1].draining, limit_s=5)
    watched.stalled = True
    await eventually(lambda: call.reports()[-1].stalled, limit_s=5)


async def test_requests_that_make_no_step_are_reported_again_and_again() -> None:
    watched = Watched()
    watched.engine.hang()
    submit(watched.engine)
    call, _ = watched.call("WatchLoad", WatchLoadRequest())
    await eventually(lambda: len(call.sent) == 3, look_every_s=0.05)
    assert len({report.steps for report in call.reports()}) == 1
    await watched.engine.close()


async def test_a_slow_reader_of_load_gets_the_present_one_when_it_reads() -> None:
    watched = Watched()
    call, handler = watched.call("WatchLoad", WatchLoadRequest(), room=1)
    submit(watched.engine)
    other, _ = watched.call("WatchLoad", WatchLoadRequest())
    await eventually(lambda: len(other.sent) == 4)
    assert len(call.sent) == 1
    call.room = 1
    handler.on_writable()
    assert call.reports()[-1].steps == watched.engine.load().steps
    await watched.engine.close()


async def test_nothing_is_measured_when_nobody_watches() -> None:
    watched = Watched()
    calls = [watched.call("WatchLoad", WatchLoadRequest())[0] for _ in range(2)]
    assert len(watched.engine.load_changed) == 1
    watched.fleet.end()
    assert [call.finished for call in calls] == [True, True]
    assert len(watched.engine.load_changed) == 0
    looks = watched.fleet.loads.looks
    submit(watched.engine)
    await eventually(lambda: watched.engine.load().steps > 30)
    assert watched.fleet.loads.looks == looks
    await watched.engine.close()
