"""What a front door and its workers say of themselves on their status ports."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

_ANSWER_S = 2.0
_ANSWER_BYTES = 4 * 1024 * 1024
_THREADS = 32
# No proxy: what it would reach is not the network that the fleet lives in.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoReport(Exception):
    """A status port does not answer, or with something that is no health report."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine does; `kv_usage` is a share of 1."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself; what an older one does not say has its default."""

    status: str = ""
    draining: bool = False
    load: Load | None = None


class FleetWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as its front door sees it, and its own `health` or why there is none."""

    id: str = ""
    address: str = ""
    engine: str = ""
    version: str = ""
    connected: bool = False
    state: str = "ready"
    in_flight: int = 0
    status_url: str = ""
    health: WorkerReport | None = None
    problem: str = ""


class FleetModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model and its workers."""

    name: str
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    ready: bool = False
    context_length: int = 0
    workers: tuple[FleetWorker, ...] = ()


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A front door and all behind it."""

    status: str = ""
    version: str = ""
    in_flight: int = 0
    queued: int = 0
    draining: bool = False
    models: tuple[FleetModel, ...] | None = None
    problem: str = ""


def fleet_report(target: str) -> dict[str, Any]:
    """Return the front door's report; each worker's own is in it as `health`, or a `problem`.

    Asks all workers at once. Raises NoReport if the front door gives none.
    """
    report = _health(f"http://{target}", Fleet)
    workers = [
        worker
        for model in report.get("models", ())
        for worker in model.get("workers", ())
        if worker.get("status_url")
    ]
    if workers:
        with ThreadPoolExecutor(min(len(workers), _THREADS)) as threads:
            for worker, found in zip(workers, threads.map(_asked, workers), strict=True):
                worker |= found
    return report


def _asked(worker: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"health": _health(worker["status_url"], WorkerReport)}
    except NoReport as error:
        return {"problem": str(error)}


def _health(url: str, shape: type) -> dict[str, Any]:
    """GET /health: a JSON object that can be read as `shape`, unknown fields and all."""
    try:
        report: dict[str, Any] = msgspec.json.decode(_get(f"{url}/health"), type=dict[str, Any])
        msgspec.convert(report, shape)
    except http.client.HTTPException as error:
        raise NoReport(f"no health report from {url}: what answers speaks no HTTP") from error
    except (OSError, msgspec.DecodeError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or reason
        raise NoReport(f"no health report from {url}: {why}") from error
    return report


def _get(url: str) -> bytes:
    try:
        with _OPENER.open(url, timeout=_ANSWER_S) as answer:
            return bytes(answer.read(_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        # Unready is said by the status and explained in the body.
        if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        return error.read(_ANSWER_BYTES)
