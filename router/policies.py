"""The policies by name, and those that need no knowledge of prompts."""

from abc import abstractmethod

from router.cost import cheapest
from router.kv import KvRouter
from router.place_table import Rows
from router.policy import Policy
from router.router import Choice, Router, RouteRequest
from router.settings import RouterSettings


class _Simple(Policy):
    @abstractmethod
    def _pick(self, rows: Rows) -> int:
        """Return one of the rows."""

    def _decide(self, request: RouteRequest, rows: Rows) -> Choice:
        place = self._table.place(self._pick(rows))
        return Choice(worker_id=place.worker_id, rank=place.rank)


class RoundRobin(_Simple):
    """Each place in turn."""

    def __init__(self, settings: RouterSettings) -> None:
        super().__init__(settings)
        self._turn = -1

    def _pick(self, rows: Rows) -> int:
        self._turn += 1
        return int(rows[self._turn % len(rows)])


class Random(_Simple):
    """Any place with equal chance."""

    def _pick(self, rows: Rows) -> int:
        return int(rows[self._random.randrange(len(rows))])


class PowerOfTwo(_Simple):
    """The less loaded of two random places (Mitzenmacher 2001, "The power of two choices")."""

    def _pick(self, rows: Rows) -> int:
        if len(rows) > 1:
            rows = rows[self._random.sample(range(len(rows)), 2)]
        return int(rows[self._costs(rows).argmin()])


class LeastLoaded(_Simple):
    """The place with the least load: prompts to be computed and blocks in use."""

    def _pick(self, rows: Rows) -> int:
        tied = cheapest(self._costs(rows))
        return int(rows[tied[self._random.randrange(len(tied))]])


_CLASSES: dict[str, type[Policy]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "power-of-two": PowerOfTwo,
    "least-loaded": LeastLoaded,
    "kv": KvRouter,
}


def make_router(settings: RouterSettings) -> Router:
    """Return a router for one model's workers."""
    return _CLASSES[settings.policy](settings)
