"""The status port of a family of processes: what each of them says, as one."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cli.options import FrontOptions
from runtime.logs import set_log_level
from runtime.metrics_merge import MergedRegistry
from runtime.status_client import Answer, ask_all
from runtime.status_server import StatusServer
from runtime.supervisor import Child

Health = Mapping[str, Any]
_SUMMED = ("in_flight", "queued")


class FamilyStatus:
    """Metrics of all, readiness and health of the front doors, the log level of everybody.

    `children` is looked at for each request, in other threads; `welcome`: whether requests are.
    """

    def __init__(
        self,
        name: str,
        config: FrontOptions,
        children: Mapping[str, Child],
        *,
        fronts: Collection[str],
        welcome: Callable[[], bool],
    ) -> None:
        self._name = name
        self._children = children
        self._fronts = fronts
        self._welcome = welcome
        self.server = StatusServer(
            host=config.status_host,
            port=config.metrics_port,
            is_ready=self._is_ready,
            describe=self._describe,
            registry=MergedRegistry(name, lambda: self._urls("/metrics")),
            prefix=config.metrics_prefix,
            set_level=self._set_level,
        )

    def _urls(self, page: str) -> dict[str, str]:
        urls = {name: status_url(child) for name, child in list(self._children.items())}
        return {name: url + page for name, url in urls.items() if url}

    def _is_ready(self) -> bool:
        urls = {name: url for name, url in self._urls("/ready").items() if name in self._fronts}
        return self._welcome() and any(a.status == 200 for a in ask_all(urls).values())

    def _describe(self) -> dict[str, Any]:
        """Return the first front door's health with the load of all, and who there is."""
        told = _told(self._urls("/health"))
        fronts = [about for name, about in told.items() if name in self._fronts]
        about = dict(fronts[0]) if fronts else {}
        about |= {key: sum(front.get(key, 0) for front in fronts) for key in _SUMMED}
        processes = {
            name: {
                "pid": child.pid,
                "restarts": max(0, child.starts - 1),
                "ready": told.get(name, {}).get("status") == "ready",
            }
            for name, child in list(self._children.items())
        }
        own = ("status", "live")
        about = {key: value for key, value in about.items() if key not in own}
        return about | {"process": self._name, "processes": processes}

    def can_replace(self, new: Child, old: Child, *, is_front: bool) -> bool:
        """Ask whether nothing is lost when `old` goes; blocks for seconds at most."""
        urls = {"new": status_url(new), "old": status_url(old)}
        told = _told({name: f"{url}/health" for name, url in urls.items() if url})
        if is_front:
            return front_can_replace(told.get("new", {}), told.get("old", {}))
        fronts = _told({n: url for n, url in self._urls("/health").items() if n in self._fronts})
        return worker_is_known(told.get("new", {}), fronts.values())

    def _set_level(self, level: str) -> None:
        set_log_level(level)
        ask_all(self._urls("/log-level"), put=level.encode())


def status_url(child: Child) -> str | None:
    """Return where a child's status port is; None when it does not run or has not said so yet."""
    if child.pid is None:
        return None
    url: str | None = read_told(child.spec.status_file or child.spec.ready_file).get("metrics")
    return url


def front_can_replace(new: Health, old: Health) -> bool:
    """Whether front door `new` serves what `old` does; {} is one that does not answer.

    Where `old` is not ready either, nothing is lost.
    """
    if old.get("status") != "ready":
        return bool(new)
    return new.get("status") == "ready" and _ready_models(old) <= _ready_models(new)


def worker_is_known(new: Health, fronts: Iterable[Health]) -> bool:
    """Whether worker `new` is ready and every front door has a connection to it."""
    known = new.get("instance_id")
    return new.get("status") == "ready" and all(
        known in _connected_workers(front) for front in fronts if known and "models" in front
    )


def _ready_models(front: Health) -> set[str]:
    return {model["name"] for model in front.get("models", ()) if model["ready"]}


def _connected_workers(front: Health) -> set[str]:
    workers = [worker for model in front["models"] for worker in model["workers"]]
    return {worker["id"] for worker in workers if worker["connected"]}


def read_told(file: Path) -> dict[str, Any]:
    """Return what a process wrote into its ready file; nothing if there is none."""
    try:
        told: dict[str, Any] = json.loads(file.read_bytes())
    except OSError:
        return {}
    return told


def _told(urls: Mapping[str, str]) -> dict[str, Health]:
    return {name: _decode(answer) for name, answer in ask_all(urls).items()}


def _decode(answer: Answer) -> dict[str, Any]:
    with suppress(ValueError):
        told = json.loads(answer.body)
        if isinstance(told, dict):
            return told
    return {}
