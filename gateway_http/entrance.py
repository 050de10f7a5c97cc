"""Who is at the door: a request's key, before anything else of the request is looked at."""

from collections.abc import Mapping
from contextvars import ContextVar

from starlette.types import Scope

from runtime.access import Access, bearer, presented_key
from runtime.errors import Unauthenticated

OPEN_PATHS = frozenset({"/live", "/ready", "/health", "/v2/health/live", "/v2/health/ready"})
"""What answers without a key: what load balancers and kubelets ask."""

_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
# Beside the request and not in it, so that no text about a request can show it.
_passed_on: ContextVar[str | None] = ContextVar("penstock_passed_on_key", default=None)


def admit(scope: Scope, access: Access | None) -> str | None:
    """Return the caller's name; None where nobody is asked. Raises Unauthenticated."""
    if access is None:
        _remember(scope)
        return None
    if scope["path"] in OPEN_PATHS:
        return None
    return access.principal(_credentials(scope))


def passed_on_key() -> Mapping[str, str]:
    """Return the metadata that presents the present request's key to another server."""
    key = _passed_on.get()
    return {} if key is None else bearer(key)


def _remember(scope: Scope) -> None:
    try:
        _passed_on.set(presented_key(_credentials(scope)))
    except Unauthenticated:
        _passed_on.set(None)


def _credentials(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _CREDENTIALS:
            key, text = name.decode(), value.decode("latin-1")
            found[key] = f"{found[key]},{text}" if key in found else text
    return found
