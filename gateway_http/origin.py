"""What an HTTP request brings besides its body."""

import math
import time
import uuid
from dataclasses import dataclass, fields
from typing import Any

from starlette.requests import Request

from gateway_http.exchange import EXCHANGE, Exchange
from runtime.errors import InvalidRequest
from runtime.options import DAY_S

TIMEOUT_HEADER = "x-request-timeout"
WORKER_HEADER = "x-penstock-worker"
RANK_HEADER = "x-penstock-data-parallel-rank"
EXPLAIN_HEADER = "x-penstock-explain-route"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a request brings besides its body. `deadline_s` is in `time.monotonic` seconds.

    `x-penstock-worker` and `x-penstock-data-parallel-rank` pin a request, and
    `x-penstock-explain-route: true` asks for headers of the answer that say where it went.
    """

    request_id: str
    endpoint: str
    timeout_s: float | None = None
    deadline_s: float | None = None
    traceparent: str | None = None
    principal: str | None = None
    pinned_worker: str | None = None
    data_parallel_rank: int | None = None
    explain_route: bool = False

    def fields(self) -> dict[str, Any]:
        """What a GenerateRequest takes from it, its id left out."""
        return {it.name: getattr(self, it.name) for it in fields(self) if it.name != "request_id"}


def origin_of(
    request: Request, kind: str, limit_s: float | None, *, dry_run: bool = False
) -> Origin:
    """Read a generation request's headers; its id begins with `kind`.

    `x-request-timeout` is the client's limit in seconds; the server's own `limit_s` may be
    shorter. The outcome of a `dry_run` counts as no request's. Raises InvalidRequest naming the
    header.
    """
    exchange: Exchange = request.scope[EXCHANGE]
    endpoint = request.scope["route"].path
    if not dry_run:
        exchange.endpoint = endpoint
    headers = request.headers
    limits = [limit_s, _asked_timeout_s(headers.get(TIMEOUT_HEADER))]
    timeout_s = min((limit for limit in limits if limit is not None), default=None)
    return Origin(
        request_id=f"{kind}-{uuid.uuid4().hex}",
        endpoint=endpoint,
        timeout_s=timeout_s,
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
        traceparent=headers.get("traceparent"),
        principal=exchange.principal,
        pinned_worker=headers.get(WORKER_HEADER),
        data_parallel_rank=_asked_rank(headers.get(RANK_HEADER)),
        explain_route=headers.get(EXPLAIN_HEADER, "").lower() in ("true", "1"),
    )


def _asked_rank(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest(
            f"{RANK_HEADER}: expected a natural number, got {text[:40]!r}", param=RANK_HEADER
        )
    return int(text)


def _asked_timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequest(
            f"{TIMEOUT_HEADER}: expected a number of seconds above 0, got {text[:40]!r}",
            param=TIMEOUT_HEADER,
        )
    return min(seconds, DAY_S)
