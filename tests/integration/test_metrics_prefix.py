"""The operator's prefix holds for every page that shows metrics."""

from pathlib import Path

from tests.integration.test_cli import FREE, get, penstock


def test_both_ports_of_a_front_door_show_metrics_under_the_operators_prefix(tmp_path: Path) -> None:
    flags = (*FREE, f"--discovery-path={tmp_path / 'd'}", "--metrics-prefix=acme")
    with penstock(tmp_path, "frontend", *flags) as front:
        for url in (front.ready["metrics"], front.ready["http"]):
            status, text = get(f"{url}/metrics")
            assert status == 200
            assert b"\nacme_build_info{" in text
            assert b"\npenstock_" not in text
