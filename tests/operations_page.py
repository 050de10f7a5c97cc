"""docs/operations.md as data: what it says about metrics, outcomes and log fields."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operations.md"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A metric as a line of the table has it."""

    name: str
    type: str
    labels: frozenset[str]
    processes: frozenset[str]


def rows(first_column: str) -> list[list[str]]:
    """The cells of the table whose first column is called so, without its head."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n| {first_column} |")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def words(cell: str) -> list[str]:
    """The words that a cell shows as code."""
    return re.findall(r"`([^`]+)`", cell)


def documented_metrics() -> dict[str, Family]:
    """The table of metrics by name."""
    found = [
        Family(name=words(name)[0], type=kind, labels=_listed(labels), processes=_listed(processes))
        for name, kind, labels, _, processes in rows("Metric")
    ]
    return {family.name: family for family in found}


def _listed(cell: str) -> frozenset[str]:
    return frozenset(filter(None, cell.split(", ")))
