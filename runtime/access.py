"""Who may call, and how often: what servers ask, and how a key travels. Holds no key."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from runtime.errors import Unauthenticated

_BEARER = "bearer "


class Access(Protocol):
    """Knows callers by the keys that their calls carry."""

    def principal(self, metadata: Mapping[str, str]) -> str:
        """Return the caller's name. Raises Unauthenticated."""
        ...


class Limits(Protocol):
    """What a caller may do at once and per minute. `None` is a caller nobody asked for a key."""

    def enter(self, principal: str | None) -> None:
        """Count one request that begins; raises Overloaded, or Unauthenticated, and counts none."""
        ...

    def leave(self, principal: str | None) -> None:
        """Count the end of a request that `enter` let in."""
        ...


class Unlimited:
    """Limits where there are none."""

    def enter(self, principal: str | None) -> None:
        """Let in."""

    def leave(self, principal: str | None) -> None:
        """Nothing was counted."""


@contextmanager
def counted(limits: Limits, principal: str | None) -> Iterator[None]:
    """Hold a place in `limits` for the length of the block."""
    limits.enter(principal)
    try:
        yield
    finally:
        limits.leave(principal)


def presented_key(metadata: Mapping[str, str]) -> str:
    """Return the key in a call's lower-case metadata. Raises Unauthenticated without one.

    `authorization: Bearer KEY` as OpenAI's clients send it, or `x-api-key: KEY` as Anthropic's do.
    """
    sent = metadata.get("authorization", "")
    if sent[: len(_BEARER)].lower() == _BEARER:
        return sent[len(_BEARER) :].strip()
    if "x-api-key" in metadata:
        return metadata["x-api-key"].strip()
    raise Unauthenticated("an API key is needed: send it as `authorization: Bearer KEY`")


def bearer(key: str) -> dict[str, str]:
    """Return the metadata that presents a key."""
    return {"authorization": f"Bearer {key}"}


def key_digest(key: str) -> bytes:
    """Return the SHA-256 that stands for a key wherever one is held or compared."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
