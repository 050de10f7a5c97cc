"""What operators get: metrics as documented, a dashboard and alert rules that real ones answer."""

import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.observed import ENGINE, MODEL, Observed, observed
from tests.integration.prometheus_server import Prometheus, running_prometheus
from tests.integration.test_cli import FREE, chat, get, penstock
from tests.operations_page import ROOT, documented_metrics
from tests.prometheus_binaries import prometheus_binary
from tests.waiting import wait_until

# Four processes are started before the first of them.
pytestmark = pytest.mark.timeout(180)

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
KINDS = ("frontend", "router", "worker", "gateway")
# Families without a series after `Observed.ask`, and expressions over them without data.
UNSEEN = {
    "penstock_scrape_failures_total": "only a parent of several processes has children",
}
UNSEEN_IN_A_GATEWAY = {
    "penstock_client_disconnects_total": "no client of the gateway goes away",
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with observed(tmp_path_factory.mktemp("observed")) as processes:
        processes.ask()
        yield processes


@pytest.fixture(scope="module")
def scraped(asked: Observed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus as deploy/prometheus/kubernetes.yml has it, with pods that are told and not found.

    It has seen the counters rise.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [pod(kind, asked.status(kind)) for kind in KINDS]
    job["static_configs"].append(pod("other", "http://127.0.0.1:1", scrape="false"))
    config["rule_files"] = [str(ALERTS)]
    with running_prometheus(folder, config) as prometheus:
        prometheus.wait_scraped(len(KINDS))
        asked.ask()
        prometheus.wait_scraped(len(KINDS))
        yield prometheus


def pod(component: str, status: str, *, scrape: str = "true") -> dict[str, Any]:
    """A pod as discovery finds it: once per port, with what it says of itself."""
    meta = {
        "namespace": "test",
        "pod_name": f"{component}-0",
        "pod_label_app_kubernetes_io_name": "penstock",
        "pod_label_app_kubernetes_io_component": component,
        "pod_annotation_prometheus_io_scrape": scrape,
        "pod_annotation_prometheus_io_port": status.rpartition(":")[2],
        "pod_annotation_prometheus_io_path": "/metrics",
    }
    return {
        "targets": ["127.0.0.1:8000", "127.0.0.1:8001"],
        "labels": {f"__meta_kubernetes_{name}": value for name, value in meta.items()},
    }


def promtool(*arguments: str, told: bytes = b"") -> None:
    """Run it; any complaint fails the test."""
    done = subprocess.run(
        [prometheus_binary("promtool"), *arguments],
        input=told,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_has_the_metrics_that_are_documented(asked: Observed, kind: str) -> None:
    documented = {
        name: family for name, family in documented_metrics().items() if kind in family.processes
    }
    found = {}
    for family in text_string_to_metric_families(asked.metrics(kind)):
        if family.name.startswith("penstock_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert name in documented, f"{name} of a {kind} is not in docs/operations.md"
            found[name] = family.type
            labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
            assert labels <= {documented[name].labels}, name
    assert found == {name: family.type for name, family in documented.items()}


def test_every_metric_is_seen_in_some_process(asked: Observed) -> None:
    text = "".join(asked.metrics(kind) for kind in KINDS)
    families = text_string_to_metric_families(text)
    seen = {sample.name for family in families for sample in family.samples}
    names = documented_metrics().keys()
    assert {name for name in names if not {name, f"{name}_count"} & seen} == UNSEEN.keys()


def test_a_gateway_tells_of_the_first_token_of_streams_only(asked: Observed) -> None:
    families = text_string_to_metric_families(asked.metrics("gateway"))
    counts = {
        (sample.name.removesuffix("_count"), sample.labels["endpoint"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name.endswith("_count")
        and sample.labels.get("model") == MODEL
        and "endpoint" in sample.labels
    }
    streams, wholes = "/v1/completions", "/v1/chat/completions"
    first_tokens, durations = (
        "penstock_time_to_first_token_seconds",
        "penstock_request_duration_seconds",
    )
    assert counts[first_tokens, streams] == counts[durations, streams]
    assert (durations, wholes) in counts
    assert (first_tokens, wholes) not in counts


@pytest.mark.parametrize("kind", KINDS)
def test_promtool_finds_nothing_wrong_with_the_metrics(asked: Observed, kind: str) -> None:
    promtool("check", "metrics", told=asked.metrics(kind).encode())


def test_serve_shows_the_metrics_of_all_its_processes(tmp_path: Path) -> None:
    kinds = {"frontend", "worker", "serve"}
    documented = {name for name, it in documented_metrics().items() if it.processes & kinds}
    with penstock(tmp_path, "serve", MODEL, *ENGINE, *FREE) as serving:
        chat(serving.ready["http"], model=MODEL)
        text = get(f"{serving.ready['metrics']}/metrics")[1]
    promtool("check", "metrics", told=text)
    families = [
        family
        for family in text_string_to_metric_families(text.decode())
        if family.name.startswith("penstock_")
    ]
    names = [family.name + "_total" * (family.type == "counter") for family in families]
    assert sorted(names) == sorted(documented)
    processes = {sample.labels.get("process") for family in families for sample in family.samples}
    assert processes == {"serve", "front-0", f"{MODEL}-0"}


def test_both_ports_show_the_chosen_prefix(tmp_path: Path) -> None:
    options = ("--target=127.0.0.1:1", "--metrics-prefix=mine")
    with penstock(tmp_path, "gateway", *FREE[1:], *options) as gateway:
        for port in ("metrics", "http"):
            text = get(f"{gateway.ready[port]}/metrics")[1]
            assert b"\nmine_build_info{" in text
            assert b"penstock_" not in text


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_alerts_fire_on_what_they_are_for() -> None:
    promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_pods_are_scraped_once_as_their_annotations_say(scraped: Prometheus) -> None:
    found = {target["labels"]["job"]: target for target in scraped.targets()}
    assert found.keys() == {f"penstock-{kind}" for kind in KINDS}
    assert len(scraped.targets()) == len(KINDS)
    for target in found.values():
        assert target["lastError"] == ""
        assert target["labels"]["namespace"] == "test"
        assert target["labels"]["pod"].endswith("-0")


@pytest.mark.parametrize("front", ["frontend", "gateway"])
def test_every_panel_has_data(scraped: Prometheus, front: str) -> None:
    rows = {"frontend": None, "gateway": {"Traffic and outcomes", "Latency", "Tokens"}}[front]
    may_be_empty = UNSEEN | (UNSEEN_IN_A_GATEWAY if front == "gateway" else {})
    asked_for = list(panel_targets(rows))
    assert len(asked_for) > 15
    for title, target in asked_for:
        found = scraped.query(filled_in(target["expr"], front))
        if not any(name in target["expr"] for name in may_be_empty):
            assert any(not math.isnan(float(it["value"][1])) for it in found), (title, target)
        # `process` is there only where several processes have one status port.
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"process"}
        assert all(named <= it["metric"].keys() for it in found), (title, target)


def test_the_dashboard_tells_which_share_of_the_prompts_was_cached(scraped: Prometheus) -> None:
    (target,) = [it for title, it in panel_targets({"Router"}) if title.startswith("Prompt blocks")]
    found = scraped.query(filled_in(target["expr"], "frontend"))
    shares = {it["metric"]["job"]: float(it["value"][1]) for it in found}
    # The router is asked each prompt twice, and knows of it the second time.
    assert shares["penstock-router"] == pytest.approx(0.5)
    assert shares.keys() == {"penstock-router", "penstock-frontend"}


def panel_targets(rows: set[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the panels ask, with their titles: those of some rows, or all."""
    row = ""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        elif rows is None or row in rows:
            for target in panel["targets"]:
                yield panel["title"], target


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "penstock.json").read_text())
    return found


def filled_in(text: str, front: str) -> str:
    """Put values for the dashboard's variables, as Grafana does."""
    values = {
        "$__rate_interval": "2m",
        "$namespace": "test",
        "$front": f"penstock-{front}",
        "$model": MODEL,
        "$endpoint": ".*",
    }
    for name, value in values.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


def test_the_dashboards_variables_have_values(scraped: Prometheus) -> None:
    found = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            query = filled_in(variable["query"]["query"], "frontend")
            asked_for = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert asked_for is not None
            found[variable["name"]] = set(scraped.label_values(asked_for[1], asked_for[2]))
    assert found == {
        "namespace": {"test"},
        "front": {"penstock-frontend", "penstock-gateway"},
        # Before its first answer a gateway does not know what its target serves.
        "model": {MODEL, "unknown"},
        "endpoint": {"/v1/chat/completions", "/v1/completions", "ModelStreamInfer"},
    }


def test_no_alert_fires_and_no_rule_fails_while_all_is_well(scraped: Prometheus) -> None:
    wait_until(lambda: all(rule["health"] != "unknown" for rule in scraped.rules()), limit_s=30)
    rules = scraped.rules()
    assert len(rules) > 15
    for rule in rules:
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule["name"]
        assert [it for it in rule.get("alerts", ()) if it["state"] == "firing"] == [], rule["name"]
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert len(recorded) > 5
    wait_until(lambda: all(scraped.query(name) for name in recorded), limit_s=30)
