"""What a child process prints: shown line by line with its name, and searched for why it ended."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from runtime.logs import child_line

_LONGEST_LINE_BYTES = 64 * 1024
_LONGEST_REASON = 500
# The console command's last word; a line of our text log; the last line of a traceback.
_SAYS_WHY = re.compile(
    r"penstock: error: (?P<complaint>.+)"
    r"|\S+ \S+ (?:ERROR|CRITICAL) +[\w.]+: (?P<logged>.+)"
    r"|(?P<raised>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)"
)


class ChildOutput:
    """Takes the output of one run of a child as it comes.

    `reason` is the last line that tells an error, or else the last line; "" before the first.
    `write` may fail without harm: a terminal can be closed, and its children live on.
    """

    def __init__(
        self,
        name: str,
        *,
        label: str | None = None,
        log_format: str = "text",
        write: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        self._name, self._label, self._log_format = name, label, log_format
        self._write = write
        self._rest = b""
        self._error = self._last = ""

    @property
    def reason(self) -> str:
        """What the child said last about why it ends."""
        return (self._error or self._last)[:_LONGEST_REASON]

    def feed(self, data: bytes) -> None:
        """Show the complete lines; a line without end is cut when it grows too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._show(line.decode("utf-8", "replace"))

    def end(self) -> None:
        """Show what is left."""
        if self._rest:
            self._show(self._rest.decode("utf-8", "replace"))
        self._rest = b""

    def _show(self, line: str) -> None:
        if line.strip():
            self._last = line.strip()
            self._error = _told_error(self._last, self._log_format) or self._error
        with suppress(OSError, ValueError):
            self._write(child_line(self._name, line, self._log_format, label=self._label) + "\n")


def _told_error(line: str, log_format: str) -> str:
    if log_format == "json":
        with suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(line, type=dict[str, Any])
            failed = entry.get("level") in ("error", "critical")
            return str(entry.get("message", "")) if failed else ""
    found = _SAYS_WHY.match(line)
    return next(filter(None, found.groups()), "") if found else ""
