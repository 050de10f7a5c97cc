"""The requests on one worker's stream, by slot: who gets what a step frame tells."""

import logging

from runtime.errors import EngineFailed, ServingError, WorkerLost
from wire.frames import read_frame
from wire.inference_pb2 import ModelStreamInferResponse
from wire.tokens import TokenSink

log = logging.getLogger(__name__)

SLOT_LIMIT = 2**31


class Slots:
    """A slot is a small number that stands for a request on the stream to `worker`."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._sinks: dict[int, TokenSink] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._sinks)

    def free(self) -> int:
        """Return a slot that is not in use."""
        while self._next in self._sinks:
            self._next = (self._next + 1) % SLOT_LIMIT
        slot, self._next = self._next, (self._next + 1) % SLOT_LIMIT
        return slot

    def put(self, slot: int, sink: TokenSink) -> None:
        """Give a slot to a request."""
        self._sinks[slot] = sink

    def drop(self, slot: int) -> bool:
        """Take it back; returns whether it was in use."""
        return self._sinks.pop(slot, None) is not None

    def deliver(self, frame: ModelStreamInferResponse) -> None:
        """Pass on what a frame tells; slots that are not in use are ignored."""
        sinks = self._sinks
        for slot, delta in read_frame(frame):
            sink = sinks.get(slot)
            if sink is None:
                continue
            if isinstance(delta, ServingError):
                del sinks[slot]
                self._fail(sink, delta)
                continue
            try:
                sink.put(delta)
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

    def _fail(self, sink: TokenSink, error: ServingError) -> None:
        try:
            sink.fail(error)
        except Exception:
            # The other requests must hear of their ends too.
            log.exception("worker %s: a request could not be failed", self._worker)
