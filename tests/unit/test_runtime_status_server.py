"""The operator's port answers health and metrics, each request on its own."""

import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from runtime.errors import InvalidConfig
from runtime.status_server import StatusServer


@pytest.fixture
def state():
    return {"ready": False, "live": True}


@pytest.fixture
def url(state):
    registry = CollectorRegistry()
    Counter("things", "things", registry=registry).inc()
    server = StatusServer(
        host="127.0.0.1",
        port=0,
        is_ready=lambda: state["ready"],
        is_live=lambda: state["live"],
        registry=registry,
    )
    yield server.start()
    server.stop()
    server.stop()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_ready_and_health_follow_the_process_while_live_stays(url, state):
    for path in ("/ready", "/health"):
        assert get(url + path) == (503, b"not ready\n")
    state["ready"] = True
    for path in ("/ready", "/health", "/live"):
        assert get(url + path) == (200, b"ok\n")
    state["ready"] = state["live"] = False
    assert get(url + "/ready") == get(url + "/live") == (503, b"not ready\n")


def test_metrics_come_from_the_registry(url):
    status, body = get(url + "/metrics")
    assert status == 200
    assert b"things_total 1.0" in body


def test_other_paths_are_not_found(url):
    assert get(url + "/")[0] == 404


def test_a_port_in_use_is_a_configuration_error(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(InvalidConfig, match=str(port)):
        StatusServer(host="127.0.0.1", port=port, is_ready=lambda: True).start()
