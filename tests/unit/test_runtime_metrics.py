"""What the metrics of a process look like to who scrapes them."""

from prometheus_client import REGISTRY, generate_latest

from runtime.metrics import EVENT_LOOP_LAG
from runtime.request_record import FAILURES, REQUESTS, RequestRecord


def test_the_failures_of_a_known_model_begin_at_zero():
    record = RequestRecord(request_id="r", endpoint="begin", started_s=0.0)
    record.known_as("m")
    for outcome in FAILURES:
        labels = {"model": "m", "endpoint": "begin", "outcome": outcome}
        assert REGISTRY.get_sample_value("penstock_requests_total", labels) == 0


def test_no_series_tells_when_another_one_began():
    REQUESTS.labels("m", "told", "ok").inc()
    EVENT_LOOP_LAG.observe(0.0)
    assert b"_created" not in generate_latest()
