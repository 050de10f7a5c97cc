"""The real Prometheus, scraping once a second, and its HTTP API."""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.prometheus_binaries import prometheus_binary
from tests.waiting import wait_until


class Prometheus:
    """Asks a running server; an error of its own is an AssertionError with its text."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that an expression yields now."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The only sample's value, None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def wait_scraped(self, targets: int) -> None:
        """Wait until so many targets have been scraped from now on."""
        scraped = f"count(timestamp(up) > {self.value('vector(time())')})"
        wait_until(lambda: self.value(scraped) == targets, limit_s=30)

    def label_values(self, selector: str, label: str) -> list[str]:
        """The values that a label has among the series of a selector."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped."""
        found: list[dict[str, Any]] = self._get("targets", state="active")["activeTargets"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """The rules, each with its health and, for an alert, its alerts."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, page: str, **fields: str) -> Any:
        query = urllib.parse.urlencode(fields)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{page}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{fields}: {error.read().decode()}") from error


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run a server with this configuration, at a rhythm of a second, and stop it."""
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(yaml.safe_dump({**config, "global": every}))
    command = [
        str(prometheus_binary("prometheus")),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Prometheus(_url_of(process, log))
    finally:
        process.terminate()
        process.wait(20)


def _url_of(process: subprocess.Popen[bytes], log: Path) -> str:
    def listening() -> re.Match[str] | None:
        return re.search(r'msg="Listening on".* address=(\S+)', log.read_text())

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        found = listening()
        with suppress(OSError):
            if found is not None:
                urllib.request.urlopen(f"http://{found[1]}/-/ready", timeout=5).close()
                return True
        return False

    wait_until(ready, limit_s=30)
    found = listening()
    assert found is not None
    return f"http://{found[1]}"
