"""Takes the worker's model out of service and back, while the process goes on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from runtime.errors import InvalidRequest, ServingError
from runtime.rpc import CallInfo
from wire.cards import READY, UNLOADED, UNLOADING
from wire.penstock_pb2 import (
    CONTROL_LOAD,
    CONTROL_UNLOAD,
    ControlRequest,
    ControlResponse,
)
from worker.service import WorkerService

log = logging.getLogger(__name__)

_RETRY_MAX_S = 2.0


class ModelControl:
    """The state of the worker's model (wire/cards.py), changed by the fleet service's Control.

    Unloaded, the worker refuses new requests and lets running ones end; its engine stays as it is.
    `announce` is given each state that others shall know, by `run`, and may raise ServingError: it
    is tried until it succeeds or another state is due.
    """

    def __init__(self, service: WorkerService, announce: Callable[[str], Awaitable[None]]) -> None:
        self.state = READY
        self._service = service
        self._announce = announce
        self._changed = asyncio.Event()
        service.flights.on_idle = self._idle

    async def control(self, message: ControlRequest, info: CallInfo) -> Any:
        """Control of penstock.FleetService. Raises InvalidRequest for an action there is not."""
        if message.action == CONTROL_LOAD:
            self.load()
        elif message.action == CONTROL_UNLOAD:
            self.unload()
        else:
            raise InvalidRequest(f"no such action: {message.action}", param="action")
        return ControlResponse(state=self.state)

    def load(self) -> None:
        """Take requests again. Idempotent."""
        self._service.flights.unloaded = False
        self._become(READY)

    def unload(self) -> None:
        """Refuse new requests from now on. Idempotent."""
        self._service.flights.unloaded = True
        self._become(UNLOADING if self._service.in_flight else UNLOADED)

    async def run(self) -> None:
        """Announce each state until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(ServingError),
                wait=wait_exponential(multiplier=0.1, max=_RETRY_MAX_S),
            ):
                with attempt:
                    await self._announce(self.state)

    def _idle(self) -> None:
        if self.state == UNLOADING:
            self._become(UNLOADED)

    def _become(self, state: str) -> None:
        if state != self.state:
            log.info("the model is %s", state)
            self.state = state
            self._changed.set()
