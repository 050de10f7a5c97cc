"""Spans over OTLP: their links, their times, and a collector that is not there."""

import subprocess
import sys
import time

import pytest

from runtime.tracing import start_tracing
from tests.integration.otlp_collector import otlp_collector

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = REMOTE[:-1] + "0"


def test_spans_hang_below_each_other_and_below_another_process() -> None:
    with otlp_collector() as collector:
        tracing = start_tracing(collector.endpoint, "test")
        now = time.monotonic()
        root = tracing.begin("root", parent=REMOTE, began_s=now - 3, kind="server")
        child = tracing.begin("child", parent=root, began_s=now - 2, attributes={"tokens": 7})
        far = tracing.begin("far", parent=child.traceparent)
        child.end(now - 1, error="worker_lost")
        far.end()
        root.end(now, attributes={"model": "m"})
        tracing.close()
        assert len(collector.spans) == 3
        seen = collector.named("root")
        assert (seen.trace_id, seen.parent_id) == tuple(REMOTE.split("-")[1:3])
        assert seen.service == "penstock-test"
        assert seen.attributes == {"model": "m"}
        below = collector.children_of(seen)["child"]
        assert below.attributes == {"tokens": 7, "error.type": "worker_lost"}
        assert below.failed
        assert set(collector.children_of(below)) == {"far"}
        # Each time is turned into wall-clock time by itself.
        assert seen.duration_s == pytest.approx(3, abs=0.5)
        assert below.duration_s == pytest.approx(1, abs=0.5)
        assert (below.start_ns - seen.start_ns) / 1e9 == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "parent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
def test_without_a_usable_parent_a_span_begins_a_trace(parent: str | None) -> None:
    with otlp_collector() as collector:
        tracing = start_tracing(collector.endpoint, "test")
        tracing.begin("alone", parent=parent).end()
        tracing.close()
        assert collector.named("alone").parent_id == ""


def test_a_trace_that_its_client_does_not_record_is_not_sent_but_handed_on() -> None:
    with otlp_collector() as collector:
        tracing = start_tracing(collector.endpoint, "test")
        span = tracing.begin("quiet", parent=UNSAMPLED)
        assert not span
        assert span.traceparent is not None
        assert span.traceparent.split("-")[1::2] == [UNSAMPLED.split("-")[1], "00"]
        span.end()
        tracing.close()
        assert collector.spans == []


@pytest.mark.timeout(10)
def test_a_collector_that_is_not_there_does_not_hold_up_the_end() -> None:
    tracing = start_tracing("http://127.0.0.1:9", "test")
    tracing.begin("lost").end()
    tracing.close()
    tracing.close()
    assert not tracing


def test_off_nothing_is_imported_and_every_span_is_none() -> None:
    code = (
        "import sys; from runtime.tracing import start_tracing; tracing = start_tracing(None, 'x');"
        "span = tracing.begin('x'); span.end(); tracing.close();"
        "print(bool(tracing), bool(span), span.traceparent, 'opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"False False None False\n"
