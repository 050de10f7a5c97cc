"""The suite's results as a table, as JSON and as a plot."""

from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.suite.jobs import GRPC_UNARY, HTTP_UNARY, Case, Outcome

# Of the table where no terminal has a width.
WIDTH = 150


class Figure(msgspec.Struct, kw_only=True):
    """One case on one target: the median of its repeats, and their spread."""

    target: str
    front_us: float
    front_us_range: tuple[float, float]
    front_us_whole: float
    worker_us: float | None
    lost: int
    messages_per_token: float
    first_ms: float
    lag_ms: tuple[float, float] | None
    gap_ms: tuple[float, float] | None


class Row(msgspec.Struct, kw_only=True):
    """One case on every target that ran it; `over_bare` is the ratio of front-door CPU."""

    case: Case
    figures: list[Figure]
    over_bare: dict[str, float]


def figure(target: str, outcomes: list[Outcome]) -> Figure:
    """Return what the repeats of a case came to."""
    fronts = [(it.cpu_us or it.cpu_us_whole)["front"] for it in outcomes]
    workers = [(it.cpu_us or it.cpu_us_whole).get("worker") for it in outcomes]
    known = [it for it in workers if it is not None]
    lags = [it.lag_ms for it in outcomes if it.lag_ms is not None]
    gaps = [it.gap_ms for it in outcomes if it.gap_ms is not None]
    return Figure(
        target=target,
        front_us=median(fronts),
        front_us_range=(min(fronts), max(fronts)),
        front_us_whole=median(it.cpu_us_whole["front"] for it in outcomes),
        worker_us=median(known) if known else None,
        lost=sum(it.expected - it.tokens for it in outcomes),
        messages_per_token=round(median(it.messages / max(1, it.tokens) for it in outcomes), 3),
        first_ms=median(it.first_ms.p50 for it in outcomes),
        lag_ms=(median(it.p50 for it in lags), median(it.p99 for it in lags)) if lags else None,
        gap_ms=(median(it.p50 for it in gaps), median(it.p99 for it in gaps)) if gaps else None,
    )


def row(case: Case, found: dict[str, list[Outcome]]) -> Row:
    """Return a case's figures, and their ratios to the bare server's."""
    figures = [figure(target, outcomes) for target, outcomes in found.items()]
    bare = next((it.front_us for it in figures if it.target == "bare"), None)
    ratios = {
        it.target: round(it.front_us / bare, 2) for it in figures if bare and it.target != "bare"
    }
    return Row(case=case, figures=figures, over_bare=ratios)


def loads_table(rows: list[Row]) -> Table:
    """Return the loads for a terminal."""
    made = Table(
        *("case", "server", "µs of CPU", "repeats", "of bare", "worker µs", "msg/token"),
        *("first ms", "lag p50, p99 ms", "lost"),
        caption="µs of the front door's CPU per token; per request of unary cases",
    )
    for each in rows:
        for it in each.figures:
            low, high = it.front_us_range
            made.add_row(
                each.case.name if it is each.figures[0] else "",
                it.target,
                f"{it.front_us:.1f}",
                "" if low == high else f"{low:.1f} to {high:.1f}",
                f"{each.over_bare[it.target]:.2f}" if it.target in each.over_bare else "",
                "" if it.worker_us is None else f"{it.worker_us:.1f}",
                f"{it.messages_per_token:g}",
                f"{it.first_ms:.1f}",
                "" if it.lag_ms is None else f"{it.lag_ms[0]:.1f}, {it.lag_ms[1]:.1f}",
                str(it.lost),
            )
        made.add_section()
    return made


def alone_table(alone: dict[str, Any]) -> Table:
    """Return what was measured without load."""
    made = Table("without load", "")
    for name, value in alone.items():
        made.add_row(name, f"{value:g}")
    return made


def plot(rows: list[Row], path: Path) -> None:
    """Write an SVG of the CPU per token of each streaming case."""
    # It hooks itself into Python's imports, in a way that has gone out of use and warns.
    import pygal

    shown = [it for it in rows if it.case.kind not in (GRPC_UNARY, HTTP_UNARY)]
    chart = pygal.HorizontalBar(
        title="Front door: µs of CPU per token",
        height=120 + 60 * len(shown),
        legend_at_bottom=True,
        print_values=True,
        # Without it the page would load a script from elsewhere.
        js=[],
    )
    chart.x_labels = [it.case.name for it in reversed(shown)]
    targets = list(dict.fromkeys(it.target for each in shown for it in each.figures))
    for target in targets:
        values = []
        for each in reversed(shown):
            found = [it.front_us for it in each.figures if it.target == target]
            values.append(round(found[0], 1) if found else None)
        chart.add(target, values)
    chart.render_to_file(str(path))


def write(rows: list[Row], alone: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    """Print the table; write bench.json and bench.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"about": about, "rows": rows, "alone": alone}
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (folder / "bench.json").write_bytes(encoded)
    plot(rows, folder / "bench.svg")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(loads_table(rows))
    if alone:
        console.print(alone_table(alone))
