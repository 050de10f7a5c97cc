"""Dashboard, alert rules and docs/operations.md agree with the code and with each other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from runtime.errors import InvalidConfig, Overloaded, ServingError
from runtime.logs import FIELDS
from runtime.request_record import FAILURES, OK
from tests.operations_page import PAGE, ROOT, documented_metrics, rows, words

DEPLOY = ROOT / "deploy"
ALERTS = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
ALERTS_TEST = (DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
DASHBOARD = (DEPLOY / "grafana" / "penstock.json").read_text(encoding="utf-8")
# What Prometheus and its configuration add to every series.
TARGET_LABELS = {"namespace", "job", "instance", "process", "exported_process", "le"}


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(ALERTS)["groups"]:
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD)["panels"]
    return found


def shown_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def reasons(cls: type[ServingError]) -> set[str]:
    return {cls.reason}.union(*(reasons(child) for child in cls.__subclasses__()))


def test_every_outcome_is_explained() -> None:
    ours = {name for name in reasons(ServingError) if name not in {InvalidConfig.reason}}
    of_requests = ours - {
        "child_failed", "unknown_service", "discovery_failed", "model_already_exists",
        "region_exists", "region_not_found",
    }  # fmt: skip
    assert of_requests | {OK} <= {words(row[0])[0] for row in rows("Outcome")}


def test_what_counts_as_the_servers_fault_is_the_same_everywhere() -> None:
    ours = set(FAILURES) - {Overloaded.reason}
    assert {words(row[0])[0] for row in rows("Outcome") if row[2] == "server"} == ours
    named = re.findall(r'outcome=~\\?"([^"\\]+)\\?"', ALERTS + DASHBOARD)
    assert len(named) > 10
    assert {frozenset(text.split("|")) - {OK} for text in named} == {frozenset(ours)}


def test_every_field_of_a_request_in_the_log_is_explained() -> None:
    assert [name for row in rows("Field") for name in words(row[0])] == list(FIELDS)


def test_every_alert_is_tested_and_has_a_line_that_says_what_to_do() -> None:
    advised = {word for row in rows("Symptom") for word in words(row[1])}
    for alert in alerts():
        assert alert["alert"] in advised
        assert f'alertname="{alert["alert"]}"' in ALERTS_TEST
        page, _, heading = alert["annotations"]["runbook"].partition("#")
        assert ROOT / page == PAGE
        assert f"\n## {heading.replace('-', ' ').capitalize()}\n" in PAGE.read_text()


def test_alerts_speak_of_labels_that_they_have() -> None:
    for alert in alerts():
        fired = re.search(
            rf'ALERTS{{alertname="{alert["alert"]}", alertstate="firing".*}}', ALERTS_TEST
        )
        assert fired is not None
        spoken = re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"]))
        # `process` is there only where several processes have one status port.
        missing = {name for name in spoken if f"{name}=" not in fired[0]}
        assert missing <= {"process"}, alert["alert"]


def test_alerts_are_tested_with_series_as_there_are() -> None:
    known = documented_metrics()
    found = re.findall(r"- series: (penstock_\w+)\{(.*)\}", ALERTS_TEST)
    assert len(found) > 20
    for name, text in found:
        family = known[name.removesuffix("_bucket")]
        labels = set(re.findall(r"(\w+)=", text))
        assert family.labels <= labels, name
        assert labels - family.labels <= TARGET_LABELS, name


def test_dashboard_and_rules_name_only_metrics_that_there_are() -> None:
    known = {
        family.name + ("_bucket" if family.type == "histogram" else "")
        for family in documented_metrics().values()
    }
    asked = " ".join([*shown_expressions(), *(rule["expr"] for rule in rules())])
    # What the rules themselves record begins with a level: model:penstock_...
    assert set(re.findall(r"(?<!:)\bpenstock_\w+", asked)) <= known


def test_the_dashboard_shows_every_metric() -> None:
    asked = " ".join(shown_expressions())
    shown = {name.removesuffix("_bucket") for name in re.findall(r"\bpenstock_\w+", asked)}
    assert set(documented_metrics()) == shown


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_take_their_data_from_the_chosen_source_and_namespace() -> None:
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        for target in panel["targets"]:
            assert "$namespace" in target["expr"]
            # A range of its own would miss scrapes where they are rarer.
            assert set(re.findall(r"\[([^\]]+)\]", target["expr"])) <= {"$__rate_interval", "1h"}
