"""A fleet's report as a table for people."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.fleet_health import Fleet, FleetModel, FleetWorker

_COLOURS = {"ready": "green", "draining": "yellow", "unloading": "yellow", "unloaded": "yellow"}
_COLUMNS = ("worker", "engine", "version", "address", "state")
_NUMBERS = ("open", "run", "wait", "KV")


def fleet_table(target: str, report: Mapping[str, Any]) -> RenderableType:
    """Return what to print for a front door's report, made for 80 columns."""
    fleet = msgspec.convert(report, Fleet)
    if fleet.problem:
        return Text(fleet.problem, style="red")
    state = "draining" if fleet.draining else fleet.status.replace("_", " ")
    about = [f"penstock {fleet.version}"] if fleet.version else []
    about.append(f"{fleet.in_flight} in flight, {fleet.queued} queued")
    head = Text.assemble((target, "bold"), "  ", _state(state), "  ", "  ".join(about))
    parts: list[RenderableType] = [head]
    if fleet.models == ():
        parts.append(Text("no worker has been seen yet", style="dim"))
    for model in fleet.models or ():
        parts += ["", *_model(model)]
    return Group(*parts)


def _model(model: FleetModel) -> Iterator[RenderableType]:
    about = [f"context {model.context_length}"] if model.context_length else []
    if model.aliases:
        about.append(f"also {', '.join(model.aliases)}")
    if model.adapters:
        about.append(f"adapters {', '.join(model.adapters)}")
    state = "ready" if model.ready else "not ready"
    yield Text.assemble((model.name, "bold"), "  ", _state(state), "  ", "  ".join(about))
    if not model.workers:
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right")
    for worker in model.workers:
        table.add_row(*_row(worker))
    yield table
    for worker in model.workers:
        if worker.problem:
            yield Text(f"{worker.id}: {worker.problem}", style="red")


def _row(worker: FleetWorker) -> list[RenderableType]:
    load = worker.health.load if worker.health is not None else None
    numbers = (str(load.running), str(load.waiting), f"{load.kv_usage:.0%}") if load else ("-",) * 3
    texts = (worker.id, worker.engine, worker.version, worker.address)
    return [*map(Text, texts), _state(_state_of(worker)), str(worker.in_flight), *numbers]


def _state_of(worker: FleetWorker) -> str:
    if not worker.connected:
        return "lost"
    if worker.state != "ready":
        return worker.state
    if worker.health is None:
        return "unknown"
    return "draining" if worker.health.draining else worker.health.status.replace("_", " ")


def _state(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, "red"))
