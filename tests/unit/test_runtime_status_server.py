"""The operator's port answers health and metrics, each request on its own."""

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from runtime.errors import InvalidConfig
from runtime.logs import log_level, set_log_level
from runtime.status_server import StatusServer
from tests.waiting import eventually


@pytest.fixture
def state():
    return {"ready": False}


@pytest.fixture
async def url(state):
    registry = CollectorRegistry()
    Counter("things", "things", registry=registry).inc()
    Counter("penstock_parts", "parts", ("kind",), registry=registry).labels("x").inc()
    server = StatusServer(
        host="127.0.0.1",
        port=0,
        is_ready=lambda: state["ready"],
        describe=lambda: {"models": ["a"]},
        hung_s=0.2,
        registry=registry,
        prefix="mine",
    )
    yield server.start()
    server.stop()
    server.stop()


@pytest.fixture
def packages_log_level():
    before = log_level()
    yield
    set_log_level(before)


def get_blocking(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, method="PUT" if body is not None else "GET")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def get(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    return await asyncio.to_thread(get_blocking, url, body)


async def test_ready_and_health_follow_the_process_while_live_stays(url, state):
    assert await get(url + "/ready") == (503, b"not ready\n")
    assert await get(url + "/live") == (200, b"ok\n")
    state["ready"] = True
    for path in ("/ready", "/live"):
        assert await get(url + path) == (200, b"ok\n")


async def test_health_says_as_json_what_the_process_knows(url, state):
    status, body = await get(url + "/health")
    assert (status, json.loads(body)) == (
        503, {"status": "not_ready", "live": True, "models": ["a"]},
    )  # fmt: skip
    state["ready"] = True
    status, body = await get(url + "/health")
    assert (status, json.loads(body)["status"]) == (200, "ready")


async def test_the_log_level_changes_at_run_time(url, packages_log_level):
    for level in (b"debug", b"error"):
        assert await get(url + "/log-level", level) == (200, level + b"\n")
        assert await get(url + "/log-level") == (200, level + b"\n")
        assert logging.getLogger("server.fleet").getEffectiveLevel() == getattr(
            logging, level.decode().upper()
        )
    status, why = await get(url + "/log-level", b"loud")
    assert status == 400
    assert b"'loud' is not one of: debug, info, warning, error" in why


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
    assert b"\nthings_total 1.0" in body


async def test_our_metrics_have_the_prefix_that_was_asked_for(url):
    _, body = await get(url + "/metrics")
    assert b'\nmine_parts_total{kind="x"} 1.0' in body
    assert b"# TYPE mine_parts_total counter" in body
    assert b"penstock_" not in body


async def test_a_scrape_may_ask_for_some_metrics_alone(url):
    status, body = await get(url + "/metrics?name[]=things_total")
    assert status == 200
    assert b"\nthings_total 1.0" in body
    assert b"mine_parts" not in body


async def test_the_lag_of_the_event_loop_is_measured(url):
    def measured() -> float:
        return REGISTRY.get_sample_value("penstock_event_loop_lag_seconds_count") or 0.0

    before = measured()
    await eventually(lambda: measured() > before)


async def test_the_tasks_of_the_event_loop_are_counted_when_asked_for(url):
    def counted() -> float:
        return REGISTRY.get_sample_value("penstock_event_loop_tasks") or 0.0

    before = counted()
    end = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(end.wait())
        assert await asyncio.to_thread(counted) == before + 5
        end.set()
    assert counted() == before


async def test_other_paths_are_not_found(url):
    assert (await get(url + "/"))[0] == 404


async def test_a_port_in_use_is_a_configuration_error(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(InvalidConfig, match=str(port)):
        StatusServer(host="127.0.0.1", port=port, is_ready=lambda: True).start()
