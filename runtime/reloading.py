"""What files say, read again once they have changed.

Nobody watches the files: whoever needs their content asks for it and pays for one `stat` a file.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from runtime.errors import InvalidConfig

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Reloading(Generic[T]):
    """The value that `load` makes of files, at present. May be asked from any thread.

    `load` raises InvalidConfig when it cannot: here, from the constructor; later, the value of
    before stays in use and the reason is logged once.
    """

    def __init__(self, files: Sequence[Path], load: Callable[[], T]) -> None:
        self._files = tuple(files)
        self._load = load
        self._lock = threading.Lock()
        self._complaint = ""
        # Looked at before they are read: what changes meanwhile is read once more.
        self._stamp = self._look()
        self._value = load()

    @property
    def current(self) -> T:
        """The value of the files as they are now, or as they last were any good."""
        if self._look() != self._stamp:
            with self._lock:
                self._reload()
        return self._value

    def _reload(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return  # another thread was first
        self._stamp = stamp
        try:
            self._value = self._load()
        except InvalidConfig as error:
            if error.message != self._complaint:
                _LOG.warning("%s; what was read before stays in use", error.message)
            self._complaint = error.message
        else:
            self._complaint = ""
            _LOG.info("read again: %s", ", ".join(str(file) for file in self._files))

    def _look(self) -> _Stamp:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
