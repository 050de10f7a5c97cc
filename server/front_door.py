"""The front door put together: fleet, data plane and KServe service."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

from runtime.access import Limits
from runtime.discovery import Discovery
from runtime.errors import Draining
from runtime.process import return_memory
from runtime.rpc import Service
from runtime.tracing import Tracing
from server.config import FrontDoorConfig
from server.data_plane import DataPlane
from server.fleet import Connect, Fleet, plain_channel
from server.fleet_service import FrontFleetService
from server.kserve import KServeService
from server.log_settings import LogSettings, Values
from server.model_control import ModelControl
from server.models import ServedModel
from server.parsers.remote import ParserHost
from server.routing import RoutingDesk
from server.shared_memory import SharedMemory
from server.shared_values import SharedValues
from server.text.codec import TextCodec
from server.text_desk import TextDesk
from server.trace_settings import Own, TraceSettings
from wire.cards import ModelCard
from wire.generate import Backend, Routing

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.5


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
        tracing: Tracing | None = None,
        limits: Limits | None = None,
        connect: Connect = plain_channel,
    ) -> None:
        self._text_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="text")
        self._parsers = ParserHost()
        load_text = partial(_load_text, parsers=self._parsers)
        self._fleet = Fleet(config, discovery, connect, load_text=load_text)
        self._traces = TraceSettings(
            collector=bool(tracing), shared=SharedValues(Own, config.group_file("traces"))
        )
        self._logs = LogSettings(SharedValues(Values, config.group_file("logs")))
        self._shares = config.group_folder is not None
        texts = TextDesk(self._fleet, self._text_threads)
        self._plane = DataPlane(
            self._fleet,
            config,
            texts=texts,
            tracing=tracing,
            limits=limits,
            traces=self._traces,
        )
        control = ModelControl(self._fleet, config.model_control)
        desk = RoutingDesk(self._fleet, texts)
        self._memory = SharedMemory() if config.shared_memory else None
        self.services: list[Service] = [
            KServeService(self._fleet, self._plane, control, self._logs, self._memory).service,
            FrontFleetService(desk).service,
        ]
        self.backend: Backend = self._plane
        self.routing: Routing = desk

    @property
    def in_flight(self) -> int:
        """Requests admitted and not over."""
        return self._plane.in_flight

    @property
    def on_ready_change(self) -> Callable[[], None] | None:
        """Called whenever the readiness of a model may have changed."""
        return self._fleet.on_ready_change

    @on_ready_change.setter
    def on_ready_change(self, callback: Callable[[], None] | None) -> None:
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
            async with asyncio.TaskGroup() as tasks:
                if self._shares:
                    tasks.create_task(self._follow_group())
                await self._fleet.run()
        finally:
            await self._parsers.close()
            self._text_threads.shutdown(wait=False, cancel_futures=True)
            if self._memory is not None:
                self._memory.close()

    async def _follow_group(self) -> None:
        """Take over what clients have set at others of the group; tell them what was counted."""
        while True:
            try:
                self._traces.look()
                self._logs.look()
                self._plane.statistics.share()
            except OSError as error:
                _LOG.warning("the group's folder cannot be used: %s", error)
            await asyncio.sleep(_LOOK_S)

    def withdraw(self) -> None:
        """Say to all who ask that nothing is ready."""
        self._plane.withdraw()

    def drain(self) -> None:
        """Refuse new requests; running ones go on."""
        self._plane.drain()

    def give_up(self) -> None:
        """End what still runs with an error that tells clients to try another server."""
        self._plane.fail_all(Draining("the server stopped before the request was complete"))

    def readiness(self) -> dict[str, bool]:
        """Whether each model is ready, under each of its names; "" is the whole."""
        ready = {"": self.is_ready()}
        for model in self._fleet.models():
            ready |= dict.fromkeys(model.card.names, model.ready)
        return ready

    def describe(self) -> dict[str, Any]:
        """What /health tells; may be called by any thread."""
        plane = self._plane
        return {
            "process": "frontend",
            "version": version("penstock"),
            "in_flight": plane.in_flight,
            "queued": plane.queued,
            "draining": plane.draining,
            "models": [self._about(model) for model in self._fleet.models()],
        }

    def _about(self, model: ServedModel) -> dict[str, Any]:
        return {
            "name": model.card.name,
            "aliases": list(model.card.aliases),
            "adapters": list(model.card.adapters),
            "ready": model.ready,
            "context_length": model.card.context_length,
            "workers": [link.describe() for link in self._fleet.links_of(model)],
        }

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._plane.wait_idle()


def _load_text(card: ModelCard, parsers: ParserHost) -> TextCodec:
    codec = TextCodec(card, parsers)
    return_memory()
    return codec
