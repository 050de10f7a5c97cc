"""ModelStatistics of a whole group of front doors, which share their ports."""

import secrets
from collections import defaultdict
from pathlib import Path

import msgspec

from server.model_statistics import ModelStatistics

_SUFFIX = ".statistics.json"
_decode = msgspec.json.Decoder(dict[str, ModelStatistics]).decode


class GroupStatistics:
    """The sums by model: of this process as they are, of the others as they last wrote them.

    Each process writes a file of its own into `folder`, which outlives it: what was counted stays
    counted. Times of `time.monotonic` are the same for all processes of a machine.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.own: defaultdict[str, ModelStatistics] = defaultdict(ModelStatistics)
        self._folder = folder
        self._name = f"{secrets.token_hex(8)}{_SUFFIX}"
        self._written = b""

    def of(self, model: str) -> ModelStatistics:
        """The sums of a model; all 0 when nothing has been counted."""
        total = ModelStatistics()
        for known in (self.own, *self._others()):
            if model in known:
                total = total.plus(known[model])
        return total

    def share(self) -> None:
        """Write what the others may add, if it has changed. Raises OSError."""
        if self._folder is None:
            return
        data = msgspec.json.encode(dict(self.own))
        if self.own and data != self._written:
            draft = self._folder / f".{self._name}"
            draft.write_bytes(data)
            draft.replace(self._folder / self._name)
            self._written = data

    def _others(self) -> list[dict[str, ModelStatistics]]:
        if self._folder is None:
            return []
        paths = self._folder.glob(f"*{_SUFFIX}")
        hidden = (".", self._name)
        return [_decode(it.read_bytes()) for it in paths if not it.name.startswith(hidden)]
