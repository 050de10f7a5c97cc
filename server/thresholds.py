"""Busy thresholds that were set at run time, the same for all front doors of one group."""

from pathlib import Path

from server.shared_values import SharedValues
from wire.routes import Thresholds


class SharedThresholds(SharedValues[Thresholds]):
    """By model."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(Thresholds, path)
