"""Several front doors on the same ports, under one parent."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections import Counter
from typing import Any

import pytest

from tests.integration.test_cli import (
    FREE,
    SIM,
    Running,
    answers,
    chat,
    get,
    open_stream,
    penstock,
)
from tests.waiting import wait_until


def health(one: Running) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(f"{one.ready['metrics']}/health")[1])
    return told


def pids(one: Running) -> dict[str, int]:
    return {name: about["pid"] for name, about in health(one)["processes"].items()}


def all_ready(one: Running) -> bool:
    return all(about["ready"] for about in health(one)["processes"].values())


def metric(one: Running, name: str, *, at: str = "metrics") -> dict[str, float]:
    """The values of a metric's series by the process they are of."""
    lines = get(f"{one.ready[at]}/metrics")[1].decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith(f"{name}{{"):
            process = line.partition('process="')[2].partition('"')[0]
            found[process] = found.get(process, 0.0) + float(line.rpartition(" ")[2])
    return found


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Two workers and two front doors, all children of one `serve`, for the tests in turn."""
    flags = (*SIM, *FREE, "--workers=2", "--processes=2")
    with penstock(tmp_path_factory.mktemp("group"), "serve", "smollm2", *flags) as one:
        # The front doors are ready with the first worker.
        wait_until(lambda: all(it["ready"] for it in health(one)["processes"].values()), limit_s=20)
        yield one


MEMBERS = {"front-0", "front-1", "smollm2-0", "smollm2-1"}


def test_one_status_port_speaks_for_all_processes(group):
    assert get(f"{group.ready['metrics']}/ready")[0] == 200
    assert get(f"{group.ready['metrics']}/live")[0] == 200
    told = health(group)
    assert told["status"] == "ready"
    assert told["process"] == "serve"
    assert told["processes"].keys() == MEMBERS
    family = {process.pid for process in group.family()}
    for about in told["processes"].values():
        assert about == {"pid": about["pid"], "restarts": 0, "ready": True}
        assert about["pid"] in family
    assert set(metric(group, "process_start_time_seconds")) == {*MEMBERS, "serve"}


def test_no_series_and_no_heading_of_the_merged_metrics_comes_twice(group):
    lines = get(f"{group.ready['metrics']}/metrics")[1].decode().splitlines()
    heads = Counter(tuple(line.split()[:3]) for line in lines if line.startswith("#"))
    series = Counter(line.rpartition(" ")[0] for line in lines if not line.startswith("#"))
    assert heads.most_common(1)[0][1] == series.most_common(1)[0][1] == 1


def test_requests_spread_over_the_front_doors_and_are_counted_in_one_place(group):
    for _ in range(24):  # each on a connection of its own
        assert answers(group)
    # That all went to the same one of two has odds of 1 to 8 million.
    counts = metric(group, "penstock_http_requests_total")
    assert counts.keys() == {"front-0", "front-1"}
    assert sum(counts.values()) == 24
    # Whichever front door answers on the shared port, it shows the same.
    assert set(metric(group, "process_start_time_seconds", at="http")) == {*MEMBERS, "serve"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_where_the_connections_are_is_shown_by_process(group, protocol):
    def counts() -> list[float]:
        found = metric(group, f"penstock_{protocol}_connections")
        return [found["front-0"], found["front-1"]]

    before = counts()
    host, _, port = group.ready[protocol].removeprefix("http://").rpartition(":")
    held = [socket.create_connection((host, int(port))) for _ in range(24)]
    wait_until(lambda: sum(counts()) == sum(before) + 24)
    # That all are at the same one of two has odds of 1 to 8 million.
    assert all(now > then for now, then in zip(counts(), before, strict=True))
    for one in held:
        one.close()
    wait_until(lambda: counts() == before)


def index_blocks(one: Running) -> dict[str, float]:
    return metric(one, "penstock_router_index_blocks")


def both_know(one: Running, *, least: float) -> bool:
    """Whether each front door's router knows of the same, and of this many KV blocks."""
    known = index_blocks(one)
    return known.keys() == {"front-0", "front-1"} and least <= known["front-0"] == known["front-1"]


def test_each_front_door_has_a_router_that_hears_of_every_kv_cache(group):
    # Each goes through one of the two front doors: the other one learns of its blocks alike.
    for number in range(4):
        words = " ".join(f"word {number} {place}" for place in range(60))
        chat(group.ready["http"], model="smollm2", max_tokens=4, messages=[user(words)])
    wait_until(lambda: both_know(group, least=4 * 4), limit_s=10)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_busy_thresholds_set_in_one_front_door_hold_in_all(group):
    body = json.dumps({"model": "smollm2", "active_prefill_tokens_threshold": 4321}).encode()
    url = f"{group.ready['http']}/busy_threshold"
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["active_prefill_tokens_threshold"] == 4321
    # Each look is a connection of its own: that all ten go to the same of two has odds of 1 to 512.
    wait_until(lambda: all(b"4321" in get(url)[1] for _ in range(10)), limit_s=10)


def test_a_killed_front_door_leaves_the_others_serving_and_comes_back(group):
    before = pids(group)
    os.kill(before["front-0"], signal.SIGKILL)
    wait_until(lambda: pids(group)["front-0"] != before["front-0"], limit_s=20)
    assert answers(group)
    assert get(f"{group.ready['metrics']}/ready")[0] == 200
    wait_until(lambda: all_ready(group), limit_s=20)
    assert health(group)["processes"]["front-0"]["restarts"] == 1
    # Its router has read from the workers what it had not heard.
    wait_until(lambda: both_know(group, least=4 * 4), limit_s=10)


def test_the_log_level_of_all_is_set_in_one_place(group):
    request = urllib.request.Request(
        f"{group.ready['metrics']}/log-level", b"warning", method="PUT"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.read() == b"warning\n"
    wait_until(lambda: group.log.read_text().count("log level is now warning") == 5, limit_s=10)


def test_a_halted_process_costs_nobody_else_their_metrics(group):
    halted = pids(group)["smollm2-0"]
    os.kill(halted, signal.SIGSTOP)
    shown = metric(group, "process_start_time_seconds")
    assert set(shown) == {*MEMBERS, "serve"} - {"smollm2-0"}
    assert metric(group, "penstock_scrape_failures_total") == {"serve": 2.0}
    assert not health(group)["processes"]["smollm2-0"]["ready"]
    began = time.monotonic()
    assert group.stop() == 0
    assert time.monotonic() - began < 30  # the drain and what a child may take beyond it are 75


@pytest.mark.timeout(240)
def test_a_hangup_replaces_every_process_and_loses_no_running_stream(tmp_path):
    flags = ("--engine=sim", *FREE, "--processes=2", "--workers=2")
    with penstock(tmp_path, "serve", "smollm2", *flags) as one:
        before = pids(one)
        streams = [open_stream(one, max_tokens=150) for _ in range(8)]
        first = [stream.readline() for stream in streams]
        one.process.send_signal(signal.SIGHUP)
        rest = [stream.read() for stream in streams]
        wait_until(lambda: "restart: done" in one.log.read_text(), limit_s=150)
        assert all(line.startswith(b"data: ") for line in first)
        assert all(b'"finish_reason":"length"' in text for text in rest)
        after = pids(one)
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        assert answers(one)
        assert one.stop() == 0


@pytest.mark.timeout(240)
def test_an_only_worker_is_replaced_before_it_goes_or_stays_if_that_fails(tmp_path, model_folder):
    model = tmp_path / "model"
    model.mkdir()
    for file in model_folder.iterdir():
        (model / file.name).symlink_to(file)
    with penstock(tmp_path, "serve", str(model), "--model-name=smollm2", *SIM, *FREE) as one:
        before = pids(one)["smollm2-0"]
        (model / "config.json").rename(tmp_path / "gone")
        one.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "restart: ends here" in one.log.read_text(), limit_s=100)
        assert "no config.json in it" in one.log.read_text()
        assert pids(one)["smollm2-0"] == before
        assert answers(one)
        (tmp_path / "gone").rename(model / "config.json")
        one.process.send_signal(signal.SIGHUP)
        wait_until(lambda: pids(one)["smollm2-0"] not in (before, None), limit_s=100)
        assert answers(one)
        wait_until(lambda: "restart: done" in one.log.read_text(), limit_s=60)
        assert answers(one)


def test_front_doors_alone_find_workers_started_apart(tmp_path):
    discovery = f"--discovery-path={tmp_path}/d"
    with (
        penstock(tmp_path, "frontend", *FREE, discovery, "--processes=2") as group,
        penstock(tmp_path, "worker", "smollm2", *SIM, FREE[0], FREE[2], discovery),
    ):
        assert set(group.ready) == {"pid", "grpc", "http", "metrics", "models"}
        assert group.ready["pid"] == group.process.pid
        wait_until(lambda: get(f"{group.ready['metrics']}/ready")[0] == 200, limit_s=10)
        assert health(group)["process"] == "frontend"
        assert pids(group).keys() == {"front-0", "front-1"}
        wait_until(lambda: all_ready(group), limit_s=10)
        assert answers(group)
        family = group.family()
        assert group.stop() == 0
        assert not any(process.is_running() for process in family)


def test_a_front_door_takes_over_the_ports_of_a_running_one(tmp_path):
    flags = ("--share-port", "--metrics-port=0", f"--discovery-path={tmp_path}/d")
    worker = ("worker", "smollm2", *SIM, FREE[0], *flags[1:])
    with (
        penstock(tmp_path, *worker),
        penstock(tmp_path, "frontend", *FREE[:2], *flags) as old,
    ):
        ports = [f"--{name}-port={old.ready[name].rpartition(':')[2]}" for name in ("grpc", "http")]
        with penstock(tmp_path, "frontend", *ports, *flags, "--expect-model=smollm2") as new:
            assert (new.ready["grpc"], new.ready["http"]) == (old.ready["grpc"], old.ready["http"])
            assert old.stop() == 0
            assert chat(old.ready["http"], model="smollm2")["choices"]
