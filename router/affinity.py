"""Which place a session is at: requests of one session go to the same place while it may be chosen.

The KV blocks of a conversation are where its last turn ran. A session holds hard, since a client
that sends a `sequence_id` asks for it; without one nothing here has a say.
"""

from collections import OrderedDict
from typing import NamedTuple

from router.router import Place, RouteRequest

MAX_SESSIONS = 2**16
"""Per model; beyond it the one unused for longest is forgotten. About 300 bytes each."""


class _Session(NamedTuple):
    place: Place
    expires_s: float


class Affinity:
    """The sessions of one router; a session is forgotten `ttl_s` seconds after its last request.

    `ttl_s` 0 remembers nothing.
    """

    def __init__(self, ttl_s: float, max_sessions: int = MAX_SESSIONS) -> None:
        self._ttl_s = ttl_s
        self._max_sessions = max_sessions
        # By last use, and so by expiry too: all live equally long.
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        """How many sessions are remembered."""
        return len(self._sessions)

    def place_of(self, request: RouteRequest, now: float) -> Place | None:
        """Where the request's session is; None when it has none or is new."""
        if request.session_id is None:
            return None
        session = self._sessions.get(request.session_id)
        return None if session is None or session.expires_s <= now else session.place

    def started(self, request: RouteRequest, place: Place, now: float) -> None:
        """The request was handed to `place`, where its session is from now on."""
        if request.session_id is None or not self._ttl_s:
            return
        self._sessions.pop(request.session_id, None)
        if not request.session_ends:
            self._sessions[request.session_id] = _Session(place, now + self._ttl_s)
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if oldest.expires_s > now and len(self._sessions) <= self._max_sessions:
                return
            self._sessions.popitem(last=False)
