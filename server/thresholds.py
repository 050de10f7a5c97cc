"""Busy thresholds that were set at run time, the same for all front doors of one group."""

from pathlib import Path

from router.router import BusyThresholds
from server.models import ServedModel
from server.shared_values import SharedValues
from wire.routes import Thresholds


class SharedThresholds(SharedValues[Thresholds]):
    """By model."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(Thresholds, path)

    def apply(self, model: ServedModel) -> None:
        """Give the model's router what was set for it, if anything was."""
        known = self.of(model.card.name)
        if known is not None:
            model.router.thresholds = BusyThresholds(
                active_decode_blocks=known.active_decode_blocks,
                active_prefill_tokens=known.active_prefill_tokens,
            )
