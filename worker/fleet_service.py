"""A worker's side of the fleet service: what its KV cache holds, and its load, to who watches.

A watcher costs a position and the transport's short queue, however slow it reads: events wait in
the log (worker/kv_log.py), and of the load only the present one is sent.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from runtime.errors import InvalidRequest, Unsupported
from runtime.rpc import Call, CallHandler, Service, UnaryHandler
from wire.kv_events import encode_batch, read_positions
from wire.penstock_pb2 import LoadReport, RankLoad
from wire.pool import FLEET
from worker.engine import Engine
from worker.kv_log import KvCursor, KvLog

LOAD_INTERVAL_S = 0.1
"""The least time between two reports of a load that changes with each step."""
LOAD_LOOK_S = 1.0
"""Time between two looks without a step; while requests run, each look is reported."""


class FleetService:
    """The handlers. `draining` and `stalled` say how the worker is; `end` ends what watches.

    `control` answers Control, which is not offered without it.
    `load_look_s` is the time between two looks at what changes without a step.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        draining: Callable[[], bool] = lambda: False,
        stalled: Callable[[], bool] = lambda: False,
        control: UnaryHandler | None = None,
        load_look_s: float = LOAD_LOOK_S,
    ) -> None:
        self.loads = LoadReports(engine, draining, stalled, load_look_s)
        self._engine = engine
        self._watchers: dict[_KvWatcher | _LoadWatcher, None] = {}
        self.service = Service(
            name=FLEET,
            unary={} if control is None else {"Control": control},
            streams={"WatchKvEvents": self._watch_kv_events, "WatchLoad": self._watch_load},
        )

    @property
    def kv_logs(self) -> tuple[KvLog, ...]:
        """The logs of the engine's ranks."""
        return self._engine.kv_logs

    @property
    def kv_subscribers(self) -> int:
        """Calls that watch KV events."""
        return sum(isinstance(watcher, _KvWatcher) for watcher in tuple(self._watchers))

    def end(self) -> None:
        """End every watching call with OK; for a worker that stops."""
        for watcher in tuple(self._watchers):
            watcher.end()

    def _watch_kv_events(self, call: Call) -> CallHandler:
        if not self._engine.kv_logs:
            raise Unsupported("this worker's engine does not tell what its KV cache holds")
        return self._add(_KvWatcher(call, self.kv_logs, self._watchers.pop))

    def _watch_load(self, call: Call) -> CallHandler:
        return self._add(_LoadWatcher(call, self.loads, self._watchers.pop))

    def _add(self, watcher: "_KvWatcher | _LoadWatcher") -> CallHandler:
        self._watchers[watcher] = None
        return watcher


class _Watcher:
    """What both kinds of watching call do (a CallHandler): one request, answers until the end."""

    def __init__(self, call: Call, forget: Callable[[Any, None], None]) -> None:
        self._call = call
        self._forget = forget
        self._began = False

    def on_message(self, message: Any) -> None:
        """Begin; a second message ends the call."""
        if self._began:
            raise InvalidRequest("a watching call takes one request")
        self._began = True
        self._begin(message)

    def on_half_close(self) -> None:
        """Go on, unless there was no request to answer."""
        if not self._began:
            self._call.fail(InvalidRequest("a watching call needs one request"))
            self.on_cancel()

    def on_writable(self) -> None:
        """Send what is there by now."""
        self._send()

    def on_cancel(self) -> None:
        """Watch no more."""
        self._forget(self, None)
        self._stop()

    def end(self) -> None:
        """End the call with OK."""
        self._call.finish()
        self.on_cancel()

    def _begin(self, message: Any) -> None:
        raise NotImplementedError

    def _send(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError


class _KvWatcher(_Watcher):
    """One WatchKvEvents call: reads all logs, each from where the caller stands."""

    def __init__(
        self, call: Call, logs: tuple[KvLog, ...], forget: Callable[[Any, None], None]
    ) -> None:
        super().__init__(call, forget)
        self._logs = logs
        self._cursors: list[KvCursor] = []
        self._due: asyncio.Handle | None = None

    def _begin(self, message: Any) -> None:
        positions = read_positions(message)
        self._cursors = [KvCursor(log, positions.get(log.rank)) for log in self._logs]
        for log in self._logs:
            log.changed.add(self._touch)
        self._send()

    def _touch(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        behind = list(self._cursors)
        # In turns, so that no rank waits for another's snapshot.
        while behind and self._call.writable:
            cursor = behind.pop(0)
            batch = cursor.next()
            if batch is not None:
                self._call.send(encode_batch(batch))
                behind.append(cursor)

    def _stop(self) -> None:
        for log in self._logs:
            log.changed.discard(self._touch)
        if self._due is not None:
            self._due.cancel()


class _LoadWatcher(_Watcher):
    """One WatchLoad call: gets the present report, and each later one that it can take."""

    def __init__(
        self, call: Call, loads: "LoadReports", forget: Callable[[Any, None], None]
    ) -> None:
        super().__init__(call, forget)
        self._loads = loads
        self._missed = False

    def report(self, data: bytes) -> None:
        """Send a report (LoadReport), unless the caller has not read the last ones."""
        self._missed = not self._call.writable
        if not self._missed:
            self._call.send(data)

    def _begin(self, message: Any) -> None:
        self._loads.add(self)

    def _send(self) -> None:
        if self._missed:
            self.report(self._loads.current())

    def _stop(self) -> None:
        self._loads.discard(self)


class LoadReports:
    """Reports to all watchers alike; nothing is measured while nobody watches.

    `looks` counts how often the load was looked at.
    """

    def __init__(
        self,
        engine: Engine,
        draining: Callable[[], bool],
        stalled: Callable[[], bool],
        look_s: float,
    ) -> None:
        self.looks = 0
        self._look_s = look_s
        self._engine = engine
        self._draining = draining
        self._stalled = stalled
        self._watchers: dict[_LoadWatcher, None] = {}
        self._last = b""
        self._reported_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def add(self, watcher: _LoadWatcher) -> None:
        """Report to it from now on, at once for the first time."""
        if not self._watchers:
            self._engine.load_changed.add(self.touch)
            self._last = self.current()
            self._look_in(self._look_s)
        self._watchers[watcher] = None
        watcher.report(self.current())

    def discard(self, watcher: _LoadWatcher) -> None:
        """Report to it no more."""
        self._watchers.pop(watcher, None)
        if not self._watchers:
            self._engine.load_changed.discard(self.touch)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def touch(self) -> None:
        """Something changed: report it as soon as a report may be sent."""
        if self._watchers:
            loop = asyncio.get_running_loop()
            self._look_in(max(0.0, self._reported_s + LOAD_INTERVAL_S - loop.time()))

    def current(self) -> bytes:
        """Return the present report (LoadReport)."""
        total = self._engine.load()
        report = LoadReport(draining=self._draining(), steps=total.steps, stalled=self._stalled())
        for rank, load in enumerate(self._engine.loads()):
            report.ranks.append(
                RankLoad(
                    data_parallel_rank=rank,
                    running=load.running,
                    waiting=load.waiting,
                    kv_usage=load.kv_usage,
                    cache_queried_tokens=load.cache_queried_tokens,
                    cache_hit_tokens=load.cache_hit_tokens,
                )
            )
        return report.SerializeToString()

    def _look_in(self, wait_s: float) -> None:
        """Look again after `wait_s`, or sooner if that is due already."""
        loop = asyncio.get_running_loop()
        when_s = loop.time() + wait_s
        if self._timer is not None:
            # Not what the handle says: uvloop's have no time for a call that is due already.
            if self._due_s <= when_s:
                return
            self._timer.cancel()
        self._due_s = when_s
        self._timer = loop.call_at(when_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self.looks += 1
        load = self._engine.load()
        report = self.current()
        if report != self._last or load.running + load.waiting:
            self._last = report
            self._reported_s = asyncio.get_running_loop().time()
            for watcher in tuple(self._watchers):
                watcher.report(report)
        self._look_in(self._look_s)
