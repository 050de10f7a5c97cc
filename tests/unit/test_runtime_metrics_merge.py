"""The metrics of several processes come out as one text that keeps to the format's rules."""

import socket
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict_parse
from prometheus_client.parser import text_string_to_metric_families

from runtime.metrics import PrefixedRegistry
from runtime.metrics_merge import MergedRegistry
from runtime.status_server import StatusServer

HELP = 'Requests: a "quoted" word, a back\\slash,\nand a second line.'


def registry_of_a_child(requests: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("penstock_requests", HELP, ("model",), registry=registry).labels('a"b').inc(requests)
    Gauge("penstock_running", "Running.", registry=registry).set(requests)
    Gauge("penstock_build_info", "Build.", ("process",), registry=registry).labels("x").set(1)
    histogram = Histogram("penstock_took_seconds", "Took.", buckets=(1, 2), registry=registry)
    histogram.observe(1.5)
    return registry


@contextmanager
def children(**requests: int) -> Iterator[dict[str, str]]:
    servers = {
        name: StatusServer(
            host="127.0.0.1", port=0, is_ready=lambda: True, registry=registry_of_a_child(number)
        )
        for name, number in requests.items()
    }
    yield {name: server.start() + "/metrics" for name, server in servers.items()}
    for server in servers.values():
        server.stop()


def samples(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_every_series_says_whose_it_is_and_keeps_its_value():
    with children(a=1, b=2) as urls:
        merged = MergedRegistry("parent", lambda: urls, own=registry_of_a_child(4))
        text = generate_latest(merged).decode()
    for process, value in (("a", 1), ("b", 2), ("parent", 4)):
        labels = (("model", 'a"b'), ("process", process))
        assert samples(text, "penstock_requests_total")[labels] == value
        assert samples(text, "penstock_running")[(("process", process),)] == value
        bucket = (("le", "2.0"), ("process", process))
        assert samples(text, "penstock_took_seconds_bucket")[bucket] == 1


async def test_a_label_of_that_name_is_kept_under_another():
    with children(a=1) as urls:
        merged = MergedRegistry("parent", lambda: urls, own=CollectorRegistry())
        text = generate_latest(merged).decode()
    labels = (("exported_process", "x"), ("process", "a"))
    assert samples(text, "penstock_build_info") == {labels: 1}


async def test_families_keep_their_type_and_help_and_none_comes_twice():
    with children(a=1, b=2) as urls:
        merged = MergedRegistry("parent", lambda: urls, own=registry_of_a_child(4))
        text = generate_latest(PrefixedRegistry(merged, "mine")).decode()
    lines = text.splitlines()
    heads = Count(tuple(line.split()[1:3]) for line in lines if line.startswith("#"))
    assert max(heads.values()) == 1
    series = Count(line.rpartition(" ")[0] for line in lines if not line.startswith("#"))
    assert max(series.values()) == 1
    plain = generate_latest(PrefixedRegistry(registry_of_a_child(1), "mine")).decode()
    expected = {line for line in plain.splitlines() if line.startswith("#")}
    assert {line for line in lines if line.startswith("#")} == expected
    family = ""
    for line in lines:
        family = line.split()[2] if line.startswith("# TYPE") else family
        assert line.startswith(("#", family))


async def test_the_stricter_openmetrics_form_is_valid_too():
    from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

    with children(a=1, b=2) as urls:
        merged = MergedRegistry("parent", lambda: urls, own=registry_of_a_child(4))
        families = {family.name: family for family in strict_parse(openmetrics(merged).decode())}
    assert families["penstock_requests"].type == "counter"
    assert families["penstock_took_seconds"].type == "histogram"


def failures(child: str) -> float:
    labels = {"child": child}
    return REGISTRY.get_sample_value("penstock_scrape_failures_total", labels) or 0.0


async def test_a_child_that_hangs_or_is_gone_is_left_out_and_counted():
    before = failures("hung"), failures("gone"), failures("a")
    with socket.socket() as hung, socket.socket() as gone, children(a=1) as urls:
        for each in (hung, gone):
            each.bind(("127.0.0.1", 0))
        hung.listen()
        for name, each in (("hung", hung), ("gone", gone)):
            urls[name] = f"http://127.0.0.1:{each.getsockname()[1]}/metrics"
        merged = MergedRegistry("parent", lambda: urls, limit_s=1.0)
        text = generate_latest(merged).decode()
    assert (("process", "a"),) in samples(text, "penstock_running")
    counted = samples(text, "penstock_scrape_failures_total")
    for child, count in (("hung", before[0]), ("gone", before[1])):
        assert counted[("child", child), ("process", "parent")] == count + 1
    assert failures("a") == before[2]


async def test_a_child_whose_answer_is_no_metrics_is_left_out_and_counted():
    before = failures("a")
    with children(a=1) as urls:
        urls["a"] = urls["a"].replace("/metrics", "/nowhere")
        families = list(MergedRegistry("parent", lambda: urls, own=CollectorRegistry()).collect())
    assert families == []
    assert failures("a") == before + 1


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY"])
async def test_no_proxy_stands_between_parent_and_child(monkeypatch, proxy):
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with children(a=1) as urls:
        families = list(MergedRegistry("parent", lambda: urls, own=CollectorRegistry()).collect())
    assert families
