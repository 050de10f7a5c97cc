"""Busy thresholds that were set at run time, the same for all front doors of one group."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from filelock import FileLock

from wire.routes import Thresholds

log = logging.getLogger(__name__)
# Others hold it for a millisecond.
_LOCK_S = 2.0
_decode = msgspec.json.Decoder(dict[str, Thresholds]).decode


class SharedThresholds:
    """By model. They live in the file `path`, which others of the group write too, or just here.

    The file is small, local and seldom written, so that reading it may block.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._known: dict[str, Thresholds] = {}

    def of(self, model: str) -> Thresholds | None:
        """What was set for a model; None when nothing was."""
        return self._known.get(model)

    def put(self, model: str, thresholds: Thresholds) -> None:
        """Set a model's, here and for the others of the group. Raises OSError."""
        if self._path is None:
            self._known[model] = thresholds
            return
        with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_S):
            self.look()
            self._known[model] = thresholds
            self._write(self._path, self._known)

    def look(self) -> bool:
        """Take over what others have set; returns whether they have since the last look."""
        if self._path is None:
            return False
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        seen = (found.st_ino, found.st_mtime_ns)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._known = _decode(self._path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            # Raised further, it would end the front door.
            log.warning("busy thresholds stay as they are: %s: %s", self._path, error)
            return False
        return True

    def _write(self, path: Path, known: Mapping[str, Thresholds]) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(known))
        draft.replace(path)
