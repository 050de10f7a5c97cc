"""What an HTTP request brings besides its body."""

import math
import time
import uuid
from dataclasses import dataclass

from starlette.requests import Request

from gateway_http.exchange import EXCHANGE, Exchange
from runtime.errors import InvalidRequest
from runtime.options import DAY_S

TIMEOUT_HEADER = "x-request-timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a request brings besides its body. `deadline_s` is in `time.monotonic` seconds."""

    request_id: str
    endpoint: str
    timeout_s: float | None = None
    deadline_s: float | None = None
    traceparent: str | None = None
    principal: str | None = None


def origin_of(request: Request, kind: str, limit_s: float | None) -> Origin:
    """Read a generation request's headers; its id begins with `kind`.

    `x-request-timeout` is the client's limit in seconds; the server's own `limit_s` may be
    shorter. Raises InvalidRequest naming the header.
    """
    exchange: Exchange = request.scope[EXCHANGE]
    exchange.endpoint = request.scope["route"].path
    limits = [limit_s, _asked_timeout_s(request.headers.get(TIMEOUT_HEADER))]
    timeout_s = min((limit for limit in limits if limit is not None), default=None)
    return Origin(
        request_id=f"{kind}-{uuid.uuid4().hex}",
        endpoint=exchange.endpoint,
        timeout_s=timeout_s,
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
        traceparent=request.headers.get("traceparent"),
        principal=exchange.principal,
    )


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
