"""Responses that later requests go on from: in this process's memory, bounded, for a while."""

import msgspec
from cachetools import TTLCache

from gateway_http.config import GatewayConfig
from runtime.errors import ResponseNotFound


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A response and what it answered, as JSON: itself, its own input, the whole conversation."""

    principal: str | None
    response: bytes
    input: bytes
    items: bytes

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.response) + len(self.input) + len(self.items)


class ResponseStore:
    """Keeps responses by id; the oldest go when there are too many, or they are too large."""

    def __init__(self, config: GatewayConfig) -> None:
        limit, most = config.response_store_bytes, config.response_store_items
        self.enabled = bool(limit and most)
        # Each one takes at least its share, so that neither limit is passed.
        least = -(-limit // most) if self.enabled else 1
        self._held: TTLCache[str, Stored] = TTLCache(
            maxsize=limit, ttl=config.response_store_ttl_s, getsizeof=lambda it: max(it.size, least)
        )

    def put(self, name: str, stored: Stored) -> None:
        """Keep one, unless it is larger than everything that may be kept."""
        if self.enabled and stored.size <= self._held.maxsize:
            self._held[name] = stored

    def get(self, name: str, principal: str | None, *, param: str = "response_id") -> Stored:
        """Return one; raises ResponseNotFound, also for one of another API key."""
        stored = self._held.get(name)
        if stored is None or stored.principal != principal:
            raise ResponseNotFound(f"{param}: no response {name!r} is stored here", param=param)
        return stored

    def delete(self, name: str, principal: str | None) -> None:
        """Forget one; raises ResponseNotFound."""
        self.get(name, principal)
        self._held.pop(name, None)
