"""Which requests are traced under which settings."""

from pathlib import Path

import pytest

from runtime.errors import InvalidRequest
from server.shared_values import SharedValues
from server.trace_settings import Own, TraceSettings

DEFAULTS = {
    "trace_level": "TIMESTAMPS", "trace_rate": "1", "trace_count": "-1",
    "trace_mode": "opentelemetry",
}  # fmt: skip


def settings() -> TraceSettings:
    return TraceSettings(collector=True)


def sampled(of: TraceSettings, requests: int, model: str = "m") -> int:
    return sum(of.samples(model, from_client=False) for _ in range(requests))


def test_with_a_collector_every_request_is_traced() -> None:
    made = settings()
    assert made.shown() == DEFAULTS
    assert sampled(made, 10) == 10


@pytest.mark.parametrize(("rate", "traced"), [("0", 0), ("1", 12), ("3", 4), ("1000", 0)])
def test_one_request_of_the_rate_is_traced(rate: str, traced: int) -> None:
    made = settings()
    made.update("", {"trace_rate": [rate]})
    assert sampled(made, 12) == traced


def test_the_count_runs_out_and_says_what_is_left() -> None:
    made = settings()
    made.update("", {"trace_count": ["3"]})
    assert sampled(made, 2) == 2
    assert made.shown()["trace_count"] == "1"
    assert sampled(made, 5) == 1
    made.update("", {"trace_count": ["2"]})
    assert sampled(made, 5) == 2
    made.update("", {"trace_count": []})
    assert sampled(made, 5) == 5


def test_a_clients_own_trace_goes_on_unless_tracing_is_off() -> None:
    made = settings()
    made.update("", {"trace_rate": ["0"], "trace_count": ["0"]})
    assert made.samples("m", from_client=True)
    made.update("", {"trace_level": ["OFF"]})
    assert not made.samples("m", from_client=True)


def test_a_model_follows_the_others_in_what_is_not_its_own() -> None:
    made = settings()
    made.update("", {"trace_rate": ["2"]})
    made.update("m", {"trace_level": ["OFF"]})
    assert made.shown("m") == DEFAULTS | {"trace_rate": "2", "trace_level": "OFF"}
    assert made.shown("other") == DEFAULTS | {"trace_rate": "2"}
    assert (sampled(made, 4, "m"), sampled(made, 4, "other")) == (0, 2)
    made.update("m", {"trace_level": []})
    assert made.shown("m") == made.shown()
    made.update("", {"trace_rate": []})
    assert made.shown() == DEFAULTS


def test_a_models_count_is_its_own() -> None:
    made = settings()
    made.update("m", {"trace_count": ["1"]})
    assert (sampled(made, 3, "m"), sampled(made, 3, "other")) == (1, 3)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("trace_level", ["LOUD"]),
        ("trace_level", ["TENSORS"]),
        ("trace_level", ["TIMESTAMPS", "OFF"]),
        ("trace_rate", ["-1"]),
        ("trace_rate", ["often"]),
        ("trace_count", ["-2"]),
        ("trace_mode", ["triton"]),
        ("trace_file", ["/tmp/x"]),
        ("trace_file", []),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(name: str, values: list[str]) -> None:
    made = settings()
    with pytest.raises(InvalidRequest, match=name):
        made.update("", {"trace_rate": ["7"], name: values})
    assert made.shown() == DEFAULTS


def test_without_a_collector_tracing_is_off_and_stays_off() -> None:
    made = TraceSettings(collector=False)
    assert made.shown()["trace_level"] == "OFF"
    with pytest.raises(InvalidRequest, match="--otlp-endpoint"):
        made.update("", {"trace_level": ["TIMESTAMPS"]})


def test_a_group_shares_its_settings(tmp_path: Path) -> None:
    one, other = (
        TraceSettings(collector=True, shared=SharedValues(Own, tmp_path / "traces.json"))
        for _ in range(2)
    )
    one.update("", {"trace_rate": ["5"]})
    one.update("m", {"trace_level": ["OFF"]})
    other.look()
    assert other.shown("m") == one.shown("m")
    one.update("m", {"trace_level": []})
    other.look()
    assert other.shown("m") == DEFAULTS | {"trace_rate": "5"}
