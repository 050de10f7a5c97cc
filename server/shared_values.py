"""What was set at run time, the same for all front doors of one group."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from filelock import FileLock

log = logging.getLogger(__name__)
# Others hold it for a millisecond.
_LOCK_S = 2.0
T = TypeVar("T")


class SharedValues(Generic[T]):
    """Values of one type by key. They live in the file `path`, which others write too, or here.

    The file is small, local and seldom written, so that reading it may block. `kind` is the
    values' type, which msgspec reads and writes.
    """

    def __init__(self, kind: type[T], path: Path | None = None) -> None:
        self._path = path
        self._decode = msgspec.json.Decoder(dict[str, kind]).decode  # type: ignore[valid-type]
        self._seen: tuple[int, int] | None = None
        self._known: dict[str, T] = {}

    @property
    def known(self) -> Mapping[str, T]:
        """Everything that was set."""
        return self._known

    def of(self, key: str) -> T | None:
        """What was set for a key; None when nothing was."""
        return self._known.get(key)

    def put(self, key: str, value: T) -> None:
        """Set a key's value, here and for the others of the group. Raises OSError."""
        if self._path is None:
            self._known[key] = value
            return
        with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_S):
            self.look()
            self._known[key] = value
            self._write(self._path)

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
            self._known = self._decode(self._path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            # Raised further, it would end the front door.
            log.warning("what was set before stays: %s: %s", self._path, error)
            return False
        return True

    def _write(self, path: Path) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(self._known))
        draft.replace(path)
