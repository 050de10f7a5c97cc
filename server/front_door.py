"""The front door put together: fleet, data plane and KServe service."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from runtime.access import Limits
from runtime.discovery import Discovery
from runtime.rpc import Service
from server.config import FrontDoorConfig
from server.data_plane import DataPlane
from server.fleet import Connect, Fleet, plain_channel
from server.kserve import KServeService
from wire.generate import Backend


class FrontDoor:
    """Everything behind the front door's sockets. `run` must be running for it to serve.

    `limits` holds callers to what their keys allow; `connect` makes the channel to a worker's
    address, with the credentials it needs.
    """

    def __init__(
        self,
        config: FrontDoorConfig,
        discovery: Discovery,
        *,
        limits: Limits | None = None,
        connect: Connect = plain_channel,
    ) -> None:
        self._text_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="text")
        self._fleet = Fleet(config, discovery, connect)
        self._plane = DataPlane(self._fleet, config, text_threads=self._text_threads, limits=limits)
        self.services: list[Service] = [KServeService(self._fleet, self._plane).service]
        self.backend: Backend = self._plane

    @property
    def in_flight(self) -> int:
        """Requests admitted and not over."""
        return self._plane.in_flight

    @property
    def on_ready_change(self) -> Callable[[bool], None] | None:
        """Called with the new state whenever readiness changes."""
        return self._fleet.on_ready_change

    @on_ready_change.setter
    def on_ready_change(self, callback: Callable[[bool], None] | None) -> None:
        self._fleet.on_ready_change = callback

    def is_ready(self) -> bool:
        """Whether at least one model has a worker."""
        return self._fleet.is_ready()

    def model_names(self) -> list[str]:
        """The names of all known models."""
        return [model.card.name for model in self._fleet.models()]

    def ready_models(self) -> list[str]:
        """The names of the models that have a worker."""
        return [model.card.name for model in self._fleet.models() if model.ready]

    async def wait_synced(self) -> None:
        """Wait until the first snapshot of discovery has been read."""
        await self._fleet.wait_synced()

    async def run(self) -> None:
        """Follow the fleet until cancelled."""
        try:
            await self._fleet.run()
        finally:
            self._text_threads.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Refuse new requests; running ones go on."""
        self._plane.drain()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._plane.wait_idle()
