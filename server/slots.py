"""The requests on one worker's stream, by slot: who gets what a step frame tells."""

import logging
import time
from typing import Protocol

from runtime.errors import EngineFailed, ServingError, WorkerLost
from wire.frames import StepFrame
from wire.inference_pb2 import ModelStreamInferResponse
from wire.tokens import TokenDelta, TokenSink

log = logging.getLogger(__name__)

SLOT_LIMIT = 2**31


class SlotSink(TokenSink, Protocol):
    """What a request's tokens are put into."""

    def put_tokens(self, token_ids: list[int], now: float) -> None:
        """Take a delta of choice 0 that has tokens alone; `now` is in `time.monotonic` seconds."""
        ...


class Slots:
    """A slot is a small number that stands for a request on the stream to `worker`."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._sinks: dict[int, SlotSink] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._sinks)

    def free(self) -> int:
        """Return a slot that is not in use."""
        while self._next in self._sinks:
            self._next = (self._next + 1) % SLOT_LIMIT
        slot, self._next = self._next, (self._next + 1) % SLOT_LIMIT
        return slot

    def put(self, slot: int, sink: SlotSink) -> None:
        """Give a slot to a request."""
        self._sinks[slot] = sink

    def drop(self, slot: int) -> bool:
        """Take it back; returns whether it was in use."""
        return self._sinks.pop(slot, None) is not None

    def deliver(self, message: ModelStreamInferResponse) -> None:
        """Pass on what a frame tells; slots that are not in use are ignored."""
        sinks, now = self._sinks, time.monotonic()
        frame = StepFrame(message)
        counts, token_ids, at = frame.counts, frame.token_ids, 0
        for row, slot in enumerate(frame.slots):
            start, at = at, at + counts[row]
            sink = sinks.get(slot)
            if sink is None:
                continue
            try:
                if frame.is_plain(row):
                    sink.put_tokens(token_ids[start:at], now)
                else:
                    self._put(slot, sink, frame.delta(row, token_ids[start:at]))
            except Exception:
                # It costs the one request: raised further, it would end the front door.
                log.exception("worker %s: slot %d failed", self._worker, slot)
                self._fail(sink, EngineFailed("the worker's answer could not be read"))

    def lose_all(self, why: str) -> None:
        """Fail every request: the worker is gone."""
        sinks, self._sinks = self._sinks, {}
        text = f"worker {self._worker} was lost: {why}"
        if sinks:
            log.warning("%s; %d requests fail", text, len(sinks))
        for sink in sinks.values():
            self._fail(sink, WorkerLost(text))

    def _put(self, slot: int, sink: SlotSink, delta: TokenDelta | ServingError) -> None:
        if isinstance(delta, ServingError):
            del self._sinks[slot]
            self._fail(sink, delta)
        else:
            sink.put(delta)

    def _fail(self, sink: TokenSink, error: ServingError) -> None:
        try:
            sink.fail(error)
        except Exception:
            # The other requests must hear of their ends too.
            log.exception("worker %s: a request could not be failed", self._worker)
