"""The one multiplexed stream to a worker: requests and cancels out, step frames in."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from runtime.errors import ServingError, WorkerLost
from runtime.rpc_client import RpcCaller, RpcStream
from server.metrics import FRAMES
from server.slots import Slots, SlotSink
from wire.cards import READY, WorkerInstance
from wire.frames import FRAMES_HEADER
from wire.penstock_pb2 import ControlRequest
from wire.pool import FLEET, KSERVE
from wire.token_contract import encode_cancel, encode_token_request
from wire.tokens import TokenRequest

if TYPE_CHECKING:
    from wire.penstock_pb2 import ControlAction

log = logging.getLogger(__name__)


class WorkerLink:
    """A worker as the data plane sees it.

    `run` keeps the stream open, reconnecting with backoff, until it is cancelled. `on_change` is
    called when `connected` changes; `alongside` runs while it is connected. When the stream
    breaks, every request on it fails with WorkerLost; a request's sink gets nothing after its
    `cancel`. `frames` counts what the worker has sent.
    """

    def __init__(
        self,
        instance: WorkerInstance,
        channel: RpcCaller,
        *,
        retry_max_s: float,
        on_change: Callable[["WorkerLink"], None],
        alongside: Callable[[RpcCaller], Awaitable[None]] | None = None,
    ) -> None:
        self.instance = instance
        self.connected = False
        self.frames = 0
        self._channel = channel
        self._retry_max_s = retry_max_s
        self._on_change = on_change
        self._alongside = alongside
        self._stream: RpcStream | None = None
        self._slots = Slots(instance.instance_id)
        self._retiring = False
        self._frames_metric = FRAMES.labels(instance.card.name)
        self._complaint = ""
        self._controls = 0
        self._uncontrolled = asyncio.Event()
        self._uncontrolled.set()

    @property
    def routable(self) -> bool:
        """Whether it takes new requests: connected, and its model is loaded."""
        return self.connected and self.instance.state == READY

    @property
    def running(self) -> int:
        """How many requests are on the stream."""
        return len(self._slots)

    def asked_rank(self, rank: int) -> int | None:
        """How a request names a data-parallel rank: not at all where the worker has one only."""
        return rank if self.instance.data_parallel_size > 1 else None

    def describe(self) -> dict[str, Any]:
        """What is known of the worker, as JSON values."""
        instance = self.instance
        return {
            "id": instance.instance_id,
            "address": instance.address,
            "engine": instance.engine,
            "version": instance.version,
            "connected": self.connected,
            "state": instance.state,
            "in_flight": self.running,
            "status_url": instance.status_url,
        }

    async def control(self, action: "ControlAction", *, timeout_s: float) -> str:
        """Ask the worker for another state; returns the one that it has then.

        Raises ServingError: WorkerLost when it does not answer, Unsupported when it has no Control.
        """
        request = ControlRequest(action=action)
        self._controls += 1
        self._uncontrolled.clear()
        try:
            answer = await self._channel.unary(FLEET, "Control", request, timeout_s=timeout_s)
        finally:
            self._controls -= 1
            if not self._controls:
                self._uncontrolled.set()
        state: str = answer.state
        return state

    def submit(self, request: TokenRequest, sink: SlotSink) -> int:
        """Send a request; returns its slot. Raises WorkerLost when not connected."""
        if self._stream is None or self._retiring:
            raise WorkerLost(f"worker {self.instance.instance_id} is not connected")
        slot = self._slots.free()
        self._stream.send(encode_token_request(request, self.instance.card.name, slot=slot))
        self._slots.put(slot, sink)
        return slot

    def cancel(self, slot: int) -> None:
        """Stop a request in the engine; unknown slots are ignored."""
        if self._slots.drop(slot) and self._stream is not None:
            self._stream.send(encode_cancel(slot))
        self._end_if_retired()

    def finished(self, slot: int) -> None:
        """Forget a request whose last delta has come."""
        self._slots.drop(slot)
        self._end_if_retired()

    def retire(self) -> bool:
        """Take no more requests and let the running ones finish; False when there are none."""
        self._retiring = True
        self._set_connected(False)
        return self._stream is not None and len(self._slots) > 0

    async def run(self) -> None:
        """Hold the stream open until cancelled, or retired and idle."""
        try:
            while not self._retiring:
                # A stream that worked starts the backoff afresh.
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(ServingError),
                    wait=wait_random_exponential(multiplier=0.05, max=self._retry_max_s),
                    before_sleep=self._note_failure,
                    reraise=True,
                ):
                    with attempt:
                        await self._hold()
        finally:
            self._slots.lose_all("the front door let go of the worker")
            # Discovery may tell of a worker's new state, which ends this link, before its answer.
            try:
                await self._uncontrolled.wait()
            finally:
                await self._channel.close()

    async def _hold(self) -> None:
        """Relay one stream until it breaks; raises ServingError when it never worked."""
        headers = {FRAMES_HEADER: "1"}
        async with self._channel.stream(KSERVE, "ModelStreamInfer", metadata=headers) as stream:
            answered = await stream.initial_metadata()
            if answered.get(FRAMES_HEADER) != "1":
                async for _ in stream:
                    break  # a refused call has no metadata either: this raises what it was told
                raise WorkerLost(f"{self.instance.address} does not answer in step frames")
            self._stream = stream
            self._complaint = ""
            self._set_connected(not self._retiring)
            why = "the worker closed its stream"
            async with asyncio.TaskGroup() as tasks:
                following = None
                if self._alongside is not None:
                    following = tasks.create_task(self._follow(self._alongside))
                try:
                    async for frame in stream:
                        self.frames += 1
                        self._frames_metric.inc()
                        self._slots.deliver(frame)
                except ServingError as error:
                    why = error.message
                finally:
                    if following is not None:
                        following.cancel()
                    self._stream = None
                    self._set_connected(False)
                    self._slots.lose_all(why)

    async def _follow(self, alongside: Callable[[RpcCaller], Awaitable[None]]) -> None:
        try:
            await alongside(self._channel)
        except Exception:
            # Requests go on without what it would have told.
            log.exception("worker %s is not followed any more", self.instance.instance_id)

    def _note_failure(self, state: RetryCallState) -> None:
        """Log why there is no connection, once for each reason in turn."""
        why = str(state.outcome.exception()) if state.outcome else ""
        if why != self._complaint:
            self._complaint = why
            log.warning("no connection to worker %s: %s", self.instance.instance_id, why)

    def _end_if_retired(self) -> None:
        if self._retiring and not len(self._slots) and self._stream is not None:
            self._stream.cancel()

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self._on_change(self)
