"""The workers there are: follows discovery, keeps a link to each, knows which models are ready."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from router.router import WorkerJoined, WorkerLeft, WorkerStalled
from runtime.discovery import Change, Delete, Discovery, Put, Record, Snapshot
from runtime.errors import (
    InvalidConfig,
    ModelAlreadyExists,
    ModelNotFound,
    ModelNotReady,
    shown_error,
)
from runtime.rpc_client import RpcCaller
from server.config import FrontDoorConfig
from server.follower import WorkerFollower
from server.member import Member
from server.metrics import (
    CONNECTED,
    STALLED,
    UNLOADED,
    begin_model,
    forget_index,
    forget_model,
    forget_worker,
    show_index,
)
from server.models import ModelManager, ServedModel
from server.progress import ProgressWatch
from server.text.codec import TextCodec
from server.thresholds import SharedThresholds
from server.worker_link import WorkerLink
from transport.choice import make_channel
from wire.cards import READY, ModelCard, WorkerInstance, instance_kind
from wire.pool import rpc_types
from wire.routes import Thresholds

log = logging.getLogger(__name__)

Connect = Callable[[str], RpcCaller]
LoadText = Callable[[ModelCard], TextCodec | None]
_LOOK_S = 0.5


def plain_channel(address: str) -> RpcCaller:
    """A channel without TLS or token."""
    return make_channel(address, rpc_types=rpc_types)


class Fleet:
    """All models and workers of this front door.

    `on_ready_change` is called when a model, or all together, may have become ready or not;
    `on_workers_change` with a model that has gained or lost a worker. `load_text` loads a model's
    text side, or returns None where only tokens are handled; it runs in a thread.
    """

    def __init__(
        self,
        config: FrontDoorConfig,
        discovery: Discovery,
        connect: Connect = plain_channel,
        *,
        load_text: LoadText = TextCodec,
    ) -> None:
        self.on_ready_change: Callable[[], None] | None = None
        self.on_workers_change: Callable[[ServedModel], None] | None = None
        self._config = config
        self._discovery = discovery
        self._connect = connect
        self._load_text = load_text
        self._models = ModelManager()
        self._thresholds = SharedThresholds(config.group_file("thresholds"))
        self._members: dict[str, Member] = {}
        self._refused: dict[str, Record] = {}
        self._expiries: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        self._synced = asyncio.Event()
        self._change = asyncio.Event()
        for name in config.expected_models:
            CONNECTED.labels(name).set(0)

    def models(self) -> list[ServedModel]:
        """Every known model, in the order they appeared."""
        return self._models.list()

    def starting(self) -> list[str]:
        """The expected models that never had a worker."""
        return [name for name in self._config.expected_models if not self._models.has(name)]

    def model(self, name: str) -> ServedModel:
        """The model called `name`, or one of its aliases; "" is the default model.

        Raises ModelNotFound, or ModelNotReady for an expected model that never had a worker.
        """
        try:
            return self._models.get(name)
        except ModelNotFound:
            starting = self.starting()
            if name in starting or (not name and starting):
                shown = name or starting[0]
                raise ModelNotReady(f"model {shown!r} is starting", param="model") from None
            raise

    def name_of(self, name: str) -> str:
        """The name of the model with this name or alias; `name` itself when there is none."""
        return self._models.get(name).card.name if self._models.has(name) else name

    def is_ready(self) -> bool:
        """Whether at least one model has a worker."""
        return any(model.ready for model in self._models.list())

    def links_of(self, model: ServedModel) -> list[WorkerLink]:
        """The links to a model's workers, connected or not; may be called by any thread."""
        return [it.link for it in list(self._members.values()) if it.model is model]

    def state_of(self, model: ServedModel) -> tuple[str, str]:
        """A model's state as RepositoryIndex has it, and the reason when it is not READY."""
        return model.state({link.instance.state for link in self.links_of(model)})

    def not_ready(self, model: ServedModel) -> ModelNotReady:
        """The error of a request for a model that is not ready."""
        _, reason = self.state_of(model)
        verb = "is" if reason.endswith("unloaded") else "has"
        return ModelNotReady(f"model {model.card.name!r} {verb} {reason}", param="model")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()`, which speaks of workers and their states, holds."""
        while not condition():
            await self._change.wait()

    async def wait_synced(self) -> None:
        """Wait until the first snapshot of discovery has been read."""
        await self._synced.wait()

    async def run(self) -> None:
        """Follow discovery until cancelled."""
        async with (
            asyncio.TaskGroup() as group,
            aclosing(self._discovery.watch(instance_kind(self._config.namespace))) as changes,
        ):
            group.create_task(self._look_after(), name="looks after workers")
            async for change in changes:
                async with self._changing:
                    await self._apply(group, change)

    async def _apply(self, group: asyncio.TaskGroup, change: Change) -> None:
        match change:
            case Snapshot(records=records):
                await self._replace(group, records)
                self._synced.set()
            case Put(record=record):
                await self._put(group, record)
            case Delete(id=instance_id):
                await self._delete(group, instance_id)

    async def _replace(self, group: asyncio.TaskGroup, records: tuple[Record, ...]) -> None:
        known = self._members.keys() | self._refused.keys()
        for gone in known - {record.id for record in records}:
            await self._delete(group, gone)
        for record in records:
            await self._put(group, record)

    async def _delete(self, group: asyncio.TaskGroup, instance_id: str) -> None:
        self._refused.pop(instance_id, None)
        self._drop(group, instance_id)
        await self._try_refused(group)

    async def _try_refused(self, group: asyncio.TaskGroup) -> None:
        """Who was refused because of others may serve when they have left."""
        for record in list(self._refused.values()):
            await self._put(group, record)

    async def _put(self, group: asyncio.TaskGroup, record: Record) -> None:
        try:
            instance = msgspec.json.decode(record.value, type=WorkerInstance)
        except msgspec.DecodeError as error:
            log.warning("ignoring worker record %s: %s", record.id, error)
            return
        known = self._members.get(record.id)
        if known is not None and known.take_over(instance):
            self._link_changed(known.link)
            return
        changed = self._drop(group, record.id)
        await self._join(group, record, instance)
        if changed:
            await self._try_refused(group)

    async def _join(
        self, group: asyncio.TaskGroup, record: Record, instance: WorkerInstance
    ) -> None:
        again = self._refused.pop(record.id, None) == record
        try:
            model = await self._model_for(instance.card)
        except Exception as error:  # noqa: BLE001 - one bad model must not take the others along
            self._refused[record.id] = record
            if not again:
                self._explain_refusal(record.id, instance.card, error)
            return
        self._members[record.id] = self._begin(group, instance, model)
        expiry = self._expiries.pop(model.card.name, None)
        if expiry is not None:
            expiry.cancel()
        model.fit([link.instance.card for link in self.links_of(model)])
        log.info("worker %s serves %s at %s", record.id, instance.card.name, instance.address)

    def _explain_refusal(self, worker: str, card: ModelCard, error: Exception) -> None:
        expected = isinstance(error, ModelAlreadyExists | InvalidConfig)
        why = error if expected else shown_error(error, where=f"loading the text of {card.name}")
        log.error("worker %s is refused, it cannot serve %s: %s", worker, card.name, why)

    async def _model_for(self, card: ModelCard) -> ServedModel:
        """Return the card's model, added or loaded again when need be.

        Raises ModelAlreadyExists when a name is another model's, InvalidConfig when the model is
        served from other files at present or its text side cannot be loaded.
        """
        self._models.check_names(card)
        known = self._models.get(card.name) if self._models.has(card.name) else None
        if known is not None:
            if known.card.checksum == card.checksum:
                return known
            others = [link.instance.instance_id for link in self.links_of(known)]
            if others:
                raise InvalidConfig(
                    f"its model files (checksum {card.checksum[:12]}) are not those that worker "
                    f"{others[0]} serves (checksum {known.card.checksum[:12]})",
                    param="checksum",
                )
        codec = await asyncio.to_thread(self._load_text, card)
        fresh = ServedModel(card, codec, self._config.make_router(card))
        begin_model(card.name)
        self._thresholds.apply(fresh)
        if known is None:
            self._models.add(fresh)
        else:
            self._models.replace(fresh)
        return fresh

    def set_thresholds(self, model: ServedModel, wanted: Thresholds) -> None:
        """Set a model's busy thresholds, here and in the other front doors of the group."""
        self._thresholds.put(model.card.name, wanted)
        self._thresholds.apply(model)

    def _begin(
        self, group: asyncio.TaskGroup, instance: WorkerInstance, model: ServedModel
    ) -> Member:
        follower = WorkerFollower(
            instance,
            model.router,
            kv_events=self._config.follows_kv_events and instance.kv_events,
            retry_max_s=self._config.connect_retry_max_s,
            now=time.monotonic,
        )
        link = WorkerLink(
            instance,
            self._connect(instance.address),
            retry_max_s=self._config.connect_retry_max_s,
            on_change=self._link_changed,
            alongside=follower.run,
        )
        return Member(
            link=link,
            follower=follower,
            progress=ProgressWatch(self._config.worker_stall_s),
            model=model,
            task=group.create_task(link.run(), name=f"link {instance.instance_id}"),
        )

    def _drop(self, group: asyncio.TaskGroup, instance_id: str) -> bool:
        """Let go of a worker; returns whether it was in use."""
        member = self._members.pop(instance_id, None)
        if member is None:
            return False
        log.info("worker %s has left", instance_id)
        self._wake()
        model = member.model
        left = [link.instance.card for link in self.links_of(model)]
        model.fit(left)
        self._unlink(member.link, model)
        if not member.link.retire():
            member.task.cancel()
        forget_worker(model.card.name, instance_id, self._config.routing.policy)
        self._count_stalled(model)
        self._tell_ready()  # it may have had an alias that nobody else has
        name = model.card.name
        if not left and name not in self._config.expected_models:
            self._expiries[name] = group.create_task(
                self._expire(group, name), name=f"model {name}"
            )
        return True

    async def _expire(self, group: asyncio.TaskGroup, name: str) -> None:
        """A model whose last worker has left stays known for a while: it may be restarting."""
        await asyncio.sleep(self._config.model_linger_s)
        async with self._changing:
            del self._expiries[name]
            self._models.remove(name)
            log.info("model %s is forgotten: it had no worker for %g s", name,
                     self._config.model_linger_s)  # fmt: skip
            forget_model(name)
            self._tell_ready()
            await self._try_refused(group)

    def _link_changed(self, link: WorkerLink) -> None:
        member = self._members.get(link.instance.instance_id)
        if member is None or member.link is not link:
            return
        instance, model = link.instance, member.model
        self._wake()
        if not link.routable:
            self._unlink(link, model)
            return
        if instance.instance_id in model.links:
            return
        model.links[instance.instance_id] = link
        model.router.observe(
            WorkerJoined(
                instance.instance_id,
                ranks=instance.data_parallel_size,
                kv_blocks=instance.kv_blocks,
                block_size=instance.card.block_size,
            )
        )
        if member.progress.stalled:  # a router that hears of a worker anew knows nothing of it
            model.router.observe(WorkerStalled(instance.instance_id, stalled=True))
        self._tell(model)

    def _unlink(self, link: WorkerLink, model: ServedModel) -> None:
        worker_id = link.instance.instance_id
        if model.links.pop(worker_id, None) is not None:
            model.router.observe(WorkerLeft(worker_id))
            forget_index(model.card.name, worker_id)
            self._tell(model)

    def _wake(self) -> None:
        """Let who waits for a change look again."""
        self._change.set()
        self._change = asyncio.Event()

    def _tell(self, model: ServedModel) -> None:
        CONNECTED.labels(model.card.name).set(len(model.links))
        if self.on_workers_change is not None:
            self.on_workers_change(model)
        self._tell_ready()

    def _tell_ready(self) -> None:
        if self.on_ready_change is not None:
            self.on_ready_change()

    async def _look_after(self) -> None:
        """Find who makes no progress, and show who is unloaded and how large the indexes are."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            self._show_models()
            if self._thresholds.look():
                for model in self._models.list():
                    self._thresholds.apply(model)
            for worker_id, member in list(self._members.items()):
                link, follower = member.link, member.follower
                if member.progress.look(
                    now,
                    running=link.running,
                    progress=(link.frames, follower.steps),
                    says_stalled=follower.stalled,
                ):
                    self._stall_changed(worker_id, member)

    def _show_models(self) -> None:
        for model in self._models.list():
            out = [it for it in self.links_of(model) if it.instance.state != READY]
            UNLOADED.labels(model.card.name).set(len(out))
            show_index(model.card.name, model.links, model.router.stats())

    def _stall_changed(self, worker_id: str, member: Member) -> None:
        stalled = member.progress.stalled
        if stalled:
            log.warning("worker %s makes no progress: others are preferred", worker_id)
        else:
            log.info("worker %s makes progress again", worker_id)
        member.model.router.observe(WorkerStalled(worker_id, stalled))
        self._count_stalled(member.model)

    def _count_stalled(self, model: ServedModel) -> None:
        stalled = [it for it in self._members.values() if it.model is model and it.progress.stalled]
        STALLED.labels(model.card.name).set(len(stalled))
