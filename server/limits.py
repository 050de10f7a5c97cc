"""What one request may ask for, and how long it may take. Decisions only."""

import msgspec

from runtime.errors import InvalidRequest
from server.config import FrontDoorConfig
from wire.generate import GenerateRequest


def within_limits(request: GenerateRequest, config: FrontDoorConfig) -> GenerateRequest:
    """Return the request with the limits it did not set; raises InvalidRequest naming the field."""
    sampling = request.sampling
    if config.max_choices and sampling.n > config.max_choices:
        raise InvalidRequest(
            f"n ({sampling.n}) is over this server's limit of {config.max_choices}", param="n"
        )
    limit = config.max_tokens_limit
    if not limit:
        return request
    if sampling.max_tokens is None:
        capped = msgspec.structs.replace(sampling, max_tokens=limit)
        return msgspec.structs.replace(request, sampling=capped)
    if sampling.max_tokens > limit:
        raise InvalidRequest(
            f"max_tokens ({sampling.max_tokens}) is over this server's limit of {limit}",
            param="max_tokens",
        )
    return request


def deadline_of(request: GenerateRequest, config: FrontDoorConfig, now: float) -> float | None:
    """Return the earliest of the rpc's, the client's and the server's deadline."""
    limits = [
        now + seconds
        for seconds in (request.timeout_s, config.request_timeout_s or None)
        if seconds is not None
    ]
    if request.deadline_s is not None:
        limits.append(request.deadline_s)
    return min(limits, default=None)


def stall_of(
    config: FrontDoorConfig, *, sent_s: float, first_s: float | None, last_s: float, now: float
) -> str | None:
    """Say how a request's worker is too slow, or None. `sent_s` is when it was given to it."""
    if first_s is None:
        limit, since = config.first_token_timeout_s, sent_s
        what = "no first token"
    else:
        limit, since = config.token_timeout_s, last_s
        what = "no further token"
    if limit and now - since > limit:
        return f"{what} came within {limit:g} s"
    return None
