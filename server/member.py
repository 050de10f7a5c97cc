"""A registered worker that is in use, and what the front door has for it."""

import asyncio
from dataclasses import dataclass

import msgspec

from server.follower import WorkerFollower
from server.models import ServedModel
from server.progress import ProgressWatch
from server.worker_link import WorkerLink
from wire.cards import READY, WorkerInstance


@dataclass(slots=True, kw_only=True)
class Member:
    """One worker: the link to it, and what is known of it."""

    link: WorkerLink
    follower: WorkerFollower
    progress: ProgressWatch
    model: ServedModel
    task: asyncio.Task[None]

    def take_over(self, instance: WorkerInstance) -> bool:
        """Take over a changed record; False where only a link of its own can do it justice.

        A worker that comes back is begun anew, because its KV cache has to be read anew.
        """
        known = self.link.instance
        if instance != known:
            stateless = msgspec.structs.replace(instance, state=known.state)
            if stateless != known or instance.state == READY:
                return False
            self.link.instance = instance
        return True
