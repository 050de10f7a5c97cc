"""The operator's port answers health and metrics, each request on its own."""

import asyncio
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from runtime.errors import InvalidConfig
from runtime.status_server import StatusServer


@pytest.fixture
def state():
    return {"ready": False}


@pytest.fixture
async def url(state):
    registry = CollectorRegistry()
    Counter("things", "things", registry=registry).inc()
    server = StatusServer(
        host="127.0.0.1",
        port=0,
        is_ready=lambda: state["ready"],
        hung_s=0.2,
        registry=registry,
    )
    yield server.start()
    server.stop()
    server.stop()


def get_blocking(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def get(url: str) -> tuple[int, bytes]:
    return await asyncio.to_thread(get_blocking, url)


async def test_ready_and_health_follow_the_process_while_live_stays(url, state):
    for path in ("/ready", "/health"):
        assert await get(url + path) == (503, b"not ready\n")
        assert await get(url + "/live") == (200, b"ok\n")
    state["ready"] = True
    for path in ("/ready", "/health", "/live"):
        assert await get(url + path) == (200, b"ok\n")


async def test_a_process_whose_event_loop_hangs_is_not_live(url):
    assert await get(url + "/live") == (200, b"ok\n")
    began = time.monotonic()
    while get_blocking(url + "/live")[0] == 200:  # this very loop is what hangs
        assert time.monotonic() - began < 10
    async with asyncio.timeout(10):
        while await get(url + "/live") != (200, b"ok\n"):
            pass  # it lives again once its loop has turned


async def test_metrics_come_from_the_registry(url):
    status, body = await get(url + "/metrics")
    assert status == 200
    assert b"things_total 1.0" in body


async def test_other_paths_are_not_found(url):
    assert (await get(url + "/"))[0] == 404


async def test_a_port_in_use_is_a_configuration_error(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(InvalidConfig, match=str(port)):
        StatusServer(host="127.0.0.1", port=port, is_ready=lambda: True).start()
