"""What one request may ask for, and how long it may take."""

from typing import Any, cast

import pytest

from runtime.errors import InvalidConfig, InvalidRequest
from server.config import FrontDoorConfig
from server.limits import deadline_of, stall_of, within_limits
from wire.generate import GenerateRequest
from wire.sampling import make_sampling


def request(*, timeout_s: float | None = None, deadline_s: float | None = None, **sampling: Any):
    return GenerateRequest(
        request_id="r",
        model="m",
        prompt="p",
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        sampling=make_sampling({"temperature": 1, **sampling}),
    )


def test_a_request_for_more_tokens_than_allowed_is_refused_by_name() -> None:
    config = FrontDoorConfig(max_tokens_limit=100)
    assert within_limits(request(max_tokens=100), config) == request(max_tokens=100)
    with pytest.raises(InvalidRequest, match=r"max_tokens \(101\).* limit of 100") as caught:
        within_limits(request(max_tokens=101), config)
    assert caught.value.param == "max_tokens"


def test_a_request_without_a_limit_gets_the_servers() -> None:
    limited = within_limits(request(), FrontDoorConfig(max_tokens_limit=100))
    assert limited.sampling.max_tokens == 100
    assert within_limits(request(), FrontDoorConfig()).sampling.max_tokens is None


def test_a_request_for_more_answers_than_allowed_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        within_limits(request(n=5), FrontDoorConfig(max_choices=4))
    assert caught.value.param == "n"


def test_the_earliest_deadline_counts() -> None:
    server = FrontDoorConfig(request_timeout_s=10)
    assert deadline_of(request(), FrontDoorConfig(), 100.0) is None
    assert deadline_of(request(), server, 100.0) == 110.0
    assert deadline_of(request(timeout_s=3), server, 100.0) == 103.0
    assert deadline_of(request(timeout_s=30), server, 100.0) == 110.0
    assert deadline_of(request(timeout_s=3, deadline_s=101.5), server, 100.0) == 101.5


def test_a_worker_that_brings_nothing_is_stuck_after_its_limit() -> None:
    config = FrontDoorConfig(first_token_timeout_s=5, token_timeout_s=1)

    def stall(now: float, first_s: float | None = None, last_s: float = 0.0) -> str | None:
        return stall_of(config, sent_s=10.0, first_s=first_s, last_s=last_s, now=now)

    assert stall(15.0) is None
    assert stall(15.1) == "no first token came within 5 s"
    assert stall(17.0, first_s=11.0, last_s=16.5) is None
    assert stall(17.6, first_s=11.0, last_s=16.5) == "no further token came within 1 s"


@pytest.mark.parametrize("field", ["queue_limit", "token_timeout_s", "max_in_flight"])
def test_negative_limits_are_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        FrontDoorConfig(**cast("Any", {field: -1}))
    assert caught.value.param == field
