"""What a load has shown: as facts for scripts, as a table for people, as a bar while it runs."""

from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cli.bench_load import Load
from cli.client import sentence

_STATISTICS = ("mean", "p50", "p90", "p99", "max")
_TIMES = {
    "time_to_first_token_s": "first token",
    "inter_token_latency_s": "between tokens",
    "request_duration_s": "whole request",
}
# Above this share of one CPU the client delays what it measures.
_BUSY = 0.7


@contextmanager
def progress_of(load: Load) -> Iterator[None]:
    """Show on stderr how far the load is, where that is a terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar = progress.add_task("", total=load.plan.requests or load.plan.duration_s)

    def show() -> None:
        done = load.measured.ended
        progress.update(
            bar,
            completed=done if load.plan.requests else load.elapsed_s,
            description=f"{done} done, {load.in_flight} in flight",
        )

    load.on_change = show
    with progress:
        yield


def report(load: Load, *, target: str) -> dict[str, Any]:
    """Return what was measured; times in seconds, None where there was nothing to measure."""
    measured = load.measured
    elapsed_s = measured.elapsed_s or 1e-9
    return {
        "target": target,
        "model": load.model.name,
        "load": asdict(load.plan),
        "requests": {
            "ok": measured.ok,
            "failed": measured.failed.total(),
            "unfinished": measured.unfinished,
        },
        "failures": {
            reason: {"count": count, "example": sentence(measured.examples[reason], target)}
            for reason, count in measured.failed.most_common()
        },
        "elapsed_s": measured.elapsed_s,
        "client_cpu_s": measured.cpu_s,
        "prompt_tokens": measured.prompt_tokens,
        "output_tokens": measured.output_tokens,
        "requests_per_s": measured.ok / elapsed_s,
        "prompt_tokens_per_s": measured.prompt_tokens / elapsed_s,
        "output_tokens_per_s": measured.output_tokens / elapsed_s,
        "time_to_first_token_s": _statistics(measured.first_token_s),
        "inter_token_latency_s": _statistics(measured.between_tokens_s),
        "request_duration_s": _statistics(measured.whole_s),
    }


def _statistics(values: "array[float]") -> dict[str, float] | None:
    if not values:
        return None
    found = [np.mean(values), *np.percentile(values, (50, 90, 99)), np.max(values)]
    return {name: float(value) for name, value in zip(_STATISTICS, found, strict=True)}


def report_table(found: Mapping[str, Any]) -> RenderableType:
    """Return what to print for a `report`, made for 80 columns."""
    load, requests = found["load"], found["requests"]
    how = f"{load['rate']:g} per second" if load["rate"] else f"{load['concurrency']} at a time"
    head = Text.assemble((found["model"], "bold"), f" at {found['target']}: {how}")
    head.append(f", prompts of {load['prompt_tokens']} and answers of {load['max_tokens']} tokens")
    counts = f"{requests['ok']} ok, {requests['failed']} failed"
    if requests["unfinished"]:
        counts += f", {requests['unfinished']} not finished"
    lines = [
        head,
        Text(""),
        Text(f"requests    {counts} in {found['elapsed_s']:.2f} s"),
        Text(
            f"throughput  {found['requests_per_s']:.2f} requests/s, "
            f"{found['output_tokens_per_s']:.0f} output tokens/s, "
            f"{found['prompt_tokens_per_s']:.0f} prompt tokens/s"
        ),
    ]
    for reason, failure in found["failures"].items():
        lines.append(Text(f"{failure['count']} {reason}: {failure['example']}", style="red"))
    if found["client_cpu_s"] > _BUSY * found["elapsed_s"]:
        share = found["client_cpu_s"] / found["elapsed_s"]
        warning = f"the bench itself used {share:.0%} of a CPU: the server may be faster than this"
        lines.append(Text(warning, style="yellow"))
    return Group(*lines, Text(""), _times(found))


def _times(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("milliseconds", min_width=14)
    for name in _STATISTICS:
        table.add_column(name, justify="right", min_width=9)
    for field, name in _TIMES.items():
        values = found[field] or {}
        cells = (f"{values[it] * 1000:.1f}" if values else "-" for it in _STATISTICS)
        table.add_row(name, *cells)
    return table
