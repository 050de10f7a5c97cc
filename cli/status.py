"""`penstock status`: what a front door serves, with which workers and under which load."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.config import option, parse_config
from runtime.config_option import HOST_PORT

_READY, _NOT_READY, _UNREACHABLE = 0, 1, 2
_WATCHED_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """One look at a fleet."""

    target: str = option(
        "127.0.0.1:8002", help="status port of the front door", group="Server", form=HOST_PORT,
        metavar="HOST:PORT",
    )  # fmt: skip
    json: bool = option(False, help="print JSON, for scripts", group="Output")
    watch: bool = option(False, help="look again every two seconds, until Ctrl-C", group="Output")


def status(argv: Sequence[str]) -> int:
    """Show the fleet; returns 0 if it is ready, 1 if not, 2 if the front door does not answer."""
    config, _ = parse_config(
        StatusConfig,
        argv,
        prog="penstock status",
        description="What a front door serves. Exits with 0 if it is ready, 1 if it is not, and 2 "
        "if it does not answer.",
        examples=("penstock status --watch", "penstock status --target 10.0.0.7:8002 --json"),
    )
    if config.json:
        return _follow(config, lambda report: print(json.dumps(report), flush=True))
    from rich.console import Console
    from rich.live import Live

    from cli.fleet_table import fleet_table

    console, complaints = Console(highlight=False), Console(highlight=False, stderr=True)

    def show(report: dict[str, Any]) -> None:
        where = complaints if "problem" in report else console
        where.print(fleet_table(config.target, report))

    if not (config.watch and console.is_terminal):
        return _follow(config, show)
    with Live(console=console, auto_refresh=False) as live:
        return _follow(
            config, lambda report: live.update(fleet_table(config.target, report), refresh=True)
        )


def _follow(config: StatusConfig, show: Callable[[dict[str, Any]], object]) -> int:
    """Look once, or until Ctrl-C; returns the exit code that the last look stands for."""
    code = _UNREACHABLE
    try:
        while True:
            report, code = _look(config.target)
            show(report)
            if not config.watch:
                return code
            time.sleep(_WATCHED_EVERY_S)
    except KeyboardInterrupt:
        return code


def _look(target: str) -> tuple[dict[str, Any], int]:
    from cli.fleet_health import NoReport, fleet_report

    try:
        report = fleet_report(target)
    except NoReport as error:
        return {"status": "unreachable", "problem": str(error)}, _UNREACHABLE
    return report, _READY if report.get("status") == "ready" else _NOT_READY
