"""How requests ended, by kind of visit; and what must not happen."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import httpx2

from runtime.errors import DeadlineExceeded, Overloaded
from runtime.grpc_client import RpcChannel

VISIT_LIMIT_S = 60.0
MAX_FAULTS_SHOWN = 50

OK = "ok"
LEFT = "left"
"""The client went away before the end."""
GOOD = frozenset({OK, Overloaded.reason})
"""How a good request ends: others may have filled the server."""
LATE = GOOD | {DeadlineExceeded.reason}


class Fault(Exception):
    """A request did not end as it must: twice, not at all, or with somebody else's answer."""


@dataclass(kw_only=True)
class Site:
    """Where visits go. `known` are the token ids that each prompt is continued with."""

    grpc: str
    http: str
    channels: list[RpcChannel]
    client: httpx2.AsyncClient
    known: dict[tuple[str, int], list[int]] = field(default_factory=dict)


Visit = Callable[[Site, Random], Awaitable[Iterable[str]]]
"""Makes one or more requests and says how each ended: OK, LEFT, or the error's reason."""


@dataclass(frozen=True)
class Kind:
    """A kind of visit; its `weight` is its share among all kinds."""

    name: str
    weight: int
    visit: Visit
    expected: frozenset[str] = GOOD


class Ledger:
    """Counts ends, collects faults."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults: list[str] = []

    @property
    def requests(self) -> int:
        """All requests so far."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    async def play(self, kind: Kind, site: Site, rng: Random) -> None:
        """Make one visit and account for it."""
        ends: Iterable[str] = ()
        try:
            async with asyncio.timeout(VISIT_LIMIT_S):
                ends = await kind.visit(site, rng)
        except TimeoutError:
            self._fault(kind, f"no end within {VISIT_LIMIT_S:g} s")
        except Exception as error:  # noqa: BLE001 - the other visits go on
            self._fault(kind, repr(_leaf(error)))
        for end in ends:
            self.outcomes[kind.name][end] += 1
            if end not in kind.expected:
                self._fault(kind, f"ended with {end}")

    def _fault(self, kind: Kind, what: str) -> None:
        self.outcomes[kind.name]["fault"] += 1
        if len(self.faults) < MAX_FAULTS_SHOWN:
            self.faults.append(f"{kind.name}: {what}")


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
