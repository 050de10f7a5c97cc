"""Loads and unloads models: takes all workers of one in and out of service."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.errors import ModelNotReady, ServingError, Unsupported
from server.config import EXPLICIT
from server.fleet import Fleet
from server.models import ServedModel
from server.worker_link import WorkerLink
from wire.cards import READY, UNLOADING
from wire.penstock_pb2 import CONTROL_LOAD, CONTROL_UNLOAD

if TYPE_CHECKING:
    from wire.penstock_pb2 import ControlAction

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""Time for a worker to answer, and for its new state to come back through discovery."""


class ModelControl:
    """Acts on the workers that a model has; those that come later are ready, as they say.

    Calls for one model take turns. A worker that dies meanwhile is not waited for.
    """

    def __init__(self, fleet: Fleet, mode: str) -> None:
        self._fleet = fleet
        self._mode = mode
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, name: str) -> ServedModel:
        """Let all workers of a model take requests; returns once one does.

        Raises Unsupported, ModelNotFound, or ModelNotReady when no worker can be reached.
        """
        model = self._model(name)
        async with self._turns[model.card.name]:
            asked = await self._ask(model, CONTROL_LOAD)
            ids = {link.instance.instance_id for link in asked}
            await self._heard(model, lambda: model.ready and not self._out(model, ids))
        return model

    async def unload(self, name: str) -> tuple[ServedModel, bool]:
        """Let no worker of a model take requests; returns once the running ones have ended.

        False when a later call has loaded it again meanwhile. Whoever stops waiting does not stop
        the unloading. Raises as `load` does.
        """
        model = self._model(name)
        async with self._turns[model.card.name]:
            asked = await self._ask(model, CONTROL_UNLOAD)
            await self._heard(model, lambda: not self._in_state(model, asked, READY))
        await self._fleet.until(lambda: not self._in_state(model, asked, UNLOADING))
        ids = {link.instance.instance_id for link in asked}
        present = [link.instance for link in self._fleet.links_of(model)]
        return model, not any(it.state == READY and it.instance_id in ids for it in present)

    def _model(self, name: str) -> ServedModel:
        if self._mode != EXPLICIT:
            raise Unsupported(
                "models are not loaded and unloaded by clients here: start the server with "
                f"--model-control={EXPLICIT}"
            )
        return self._fleet.model(name)

    async def _ask(self, model: ServedModel, action: "ControlAction") -> list[WorkerLink]:
        """Ask every worker; returns those that have answered, of which there is at least one."""
        errors: list[ServingError] = []
        answered: list[WorkerLink] = []

        async def ask(link: WorkerLink) -> None:
            try:
                await link.control(action, timeout_s=ANSWER_S)
            except ServingError as error:
                log.warning("worker %s: %s", link.instance.instance_id, error.message)
                errors.append(error)
            else:
                answered.append(link)

        async with asyncio.TaskGroup() as tasks:
            for link in self._fleet.links_of(model):
                tasks.create_task(ask(link))
        if not answered:
            why = errors[0].message if errors else "it has no worker"
            raise ModelNotReady(f"model {model.card.name!r}: {why}", param="model_name")
        return answered

    async def _heard(self, model: ServedModel, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._fleet.until(condition)
        except TimeoutError:
            raise ModelNotReady(
                f"the workers of model {model.card.name!r} have not come to another state within "
                f"{ANSWER_S:g} s",
                param="model_name",
            ) from None

    def _in_state(self, model: ServedModel, asked: Sequence[WorkerLink], state: str) -> bool:
        """Whether one of them that still lives is in a state; who comes back has another link."""
        present = self._fleet.links_of(model)
        return any(
            link.connected and link.instance.state == state for link in asked if link in present
        )

    def _out(self, model: ServedModel, ids: set[str]) -> bool:
        """Whether one of these workers lives and is out of service."""
        return any(
            link.connected and link.instance.state != READY
            for link in self._fleet.links_of(model)
            if link.instance.instance_id in ids
        )
