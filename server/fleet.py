"""The workers there are: follows discovery, keeps a link to each, knows which models are ready."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from router.policies import make_router
from router.router import Router, WorkerJoined, WorkerLeft
from router.settings import RouterSettings
from runtime.discovery import Delete, Discovery, Put, Record, Snapshot
from runtime.errors import ModelNotFound, ModelNotReady, shown_error
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from server.metrics import CONNECTED, forget_worker
from server.text.codec import TextCodec
from server.worker_link import WorkerLink
from wire.cards import INSTANCE_KIND, ModelCard, WorkerInstance
from wire.pool import rpc_types

log = logging.getLogger(__name__)

Connect = Callable[[str], RpcChannel]


def plain_channel(address: str) -> RpcChannel:
    """A channel without TLS or token."""
    return RpcChannel(address, rpc_types=rpc_types)


class ServedModel:
    """A model that has, or had, workers: its card, text side, router and connected links."""

    def __init__(self, card: ModelCard, codec: TextCodec, router: Router) -> None:
        self.card = card
        self.codec = codec
        self.router = router
        self.links: dict[str, WorkerLink] = {}

    @property
    def ready(self) -> bool:
        """Whether a worker can take a request now."""
        return bool(self.links)


class Fleet:
    """All models and workers of this front door.

    `on_ready_change` is called when a model, or all together, may have become ready or not;
    `on_workers_change` with a model that has gained or lost a worker.
    """

    def __init__(
        self, config: FrontDoorConfig, discovery: Discovery, connect: Connect = plain_channel
    ) -> None:
        self.on_ready_change: Callable[[], None] | None = None
        self.on_workers_change: Callable[[ServedModel], None] | None = None
        self._config = config
        self._discovery = discovery
        self._connect = connect
        self._models: dict[str, ServedModel] = {}
        self._links: dict[str, tuple[WorkerLink, asyncio.Task[None]]] = {}
        self._synced = asyncio.Event()
        for name in config.expected_models:
            CONNECTED.labels(name).set(0)

    def models(self) -> list[ServedModel]:
        """Every known model, in the order they appeared."""
        return list(self._models.values())

    def starting(self) -> list[str]:
        """The expected models that never had a worker."""
        return [name for name in self._config.expected_models if name not in self._models]

    def model(self, name: str) -> ServedModel:
        """The model called `name`, or one of its aliases.

        Raises ModelNotFound, or ModelNotReady for an expected model that never had a worker.
        """
        model = self._models.get(name) or next(
            (m for m in self._models.values() if name in m.card.aliases), None
        )
        if model is None and name in self._config.expected_models:
            raise ModelNotReady(f"model {name!r} is starting", param="model")
        if model is None:
            raise ModelNotFound(f"model {name!r} is not served here", param="model")
        return model

    def is_ready(self) -> bool:
        """Whether at least one model has a worker."""
        return any(model.ready for model in self._models.values())

    def links_of(self, model: ServedModel) -> list[WorkerLink]:
        """The links to a model's workers, connected or not; may be called by any thread."""
        links = [link for link, _ in list(self._links.values())]
        return [link for link in links if link.instance.card.name == model.card.name]

    async def wait_synced(self) -> None:
        """Wait until the first snapshot of discovery has been read."""
        await self._synced.wait()

    async def run(self) -> None:
        """Follow discovery until cancelled."""
        async with (
            asyncio.TaskGroup() as group,
            aclosing(self._discovery.watch(INSTANCE_KIND)) as changes,
        ):
            async for change in changes:
                match change:
                    case Snapshot(records=records):
                        await self._replace(group, records)
                        self._synced.set()
                    case Put(record=record):
                        await self._put(group, record)
                    case Delete(id=instance_id):
                        self._drop(instance_id)

    async def _replace(self, group: asyncio.TaskGroup, records: tuple[Record, ...]) -> None:
        for gone in self._links.keys() - {record.id for record in records}:
            self._drop(gone)
        for record in records:
            await self._put(group, record)

    async def _put(self, group: asyncio.TaskGroup, record: Record) -> None:
        try:
            instance = msgspec.json.decode(record.value, type=WorkerInstance)
        except msgspec.DecodeError as error:
            log.warning("ignoring worker record %s: %s", record.id, error)
            return
        known = self._links.get(record.id)
        if known is not None and known[0].instance == instance:
            return
        self._drop(record.id)
        try:
            await self._load_model(instance.card)
        except Exception as error:  # noqa: BLE001 - one bad model must not take the others along
            why = shown_error(error, where=f"loading the text side of {instance.card.name}")
            log.error("cannot serve %s of worker %s: %s", instance.card.name, record.id, why)  # noqa: TRY400
            return
        link = WorkerLink(
            instance,
            self._connect(instance.address),
            retry_max_s=self._config.connect_retry_max_s,
            on_change=self._link_changed,
        )
        self._links[record.id] = link, group.create_task(link.run(), name=f"link {record.id}")
        log.info("worker %s serves %s at %s", record.id, instance.card.name, instance.address)

    def _drop(self, instance_id: str) -> None:
        if instance_id in self._links:
            log.info("worker %s has left", instance_id)
            link, task = self._links.pop(instance_id)
            forget_worker(link.instance.card.name, instance_id, self._config.router_policy)
            if not link.retire():
                task.cancel()

    async def _load_model(self, card: ModelCard) -> None:
        known = self._models.get(card.name)
        if known is not None and known.card.checksum == card.checksum:
            return
        codec = await asyncio.to_thread(TextCodec, card)
        if known is None:
            router = make_router(RouterSettings(policy=self._config.router_policy))
            self._models[card.name] = ServedModel(card, codec, router)
            return
        if known.links:
            log.warning("%s: the new worker's model files differ from the others'", card.name)
        known.card, known.codec = card, codec

    def _link_changed(self, link: WorkerLink) -> None:
        model = self._models[link.instance.card.name]
        worker_id = link.instance.instance_id
        if link.connected:
            model.links[worker_id] = link
            model.router.observe(WorkerJoined(worker_id))
        else:
            model.links.pop(worker_id, None)
            model.router.observe(WorkerLeft(worker_id))
        CONNECTED.labels(model.card.name).set(len(model.links))
        if self.on_workers_change is not None:
            self.on_workers_change(model)
        if self.on_ready_change is not None:
            self.on_ready_change()
