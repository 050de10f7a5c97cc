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
# The console command's last word, or a line of our text log.
_COMPLAINT = re.compile(r"(?:penstock: error|\S+ \S+ (?:ERROR|CRITICAL) +[\w.]+): (.+)")
# The last line of a traceback, which an engine's own process may have printed.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*")


class ChildOutput:
    """Takes the output of one run of a child as it comes.

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
        self._complaint = self._exception = self._last = ""

    @property
    def reason(self) -> str:
        """What the child said last about why it ends: an error or, if there was none, anything."""
        told, raised = (said[:_LONGEST_REASON] for said in (self._complaint, self._exception))
        if told and raised and raised.partition(": ")[2] not in told:
            return f"{told} (after {raised})"
        return told or raised or self._last[:_LONGEST_REASON]

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
            self._complaint = _complaint(line, self._log_format) or self._complaint
            if _EXCEPTION.match(line):
                self._exception = self._last
        with suppress(OSError, ValueError):
            self._write(child_line(self._name, line, self._log_format, label=self._label) + "\n")


def _complaint(line: str, log_format: str) -> str:
    if log_format == "json":
        with suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(line, type=dict[str, Any])
            failed = entry.get("level") in ("error", "critical")
            return str(entry.get("message", "")) if failed else ""
    found = _COMPLAINT.match(line)
    return found[1] if found else ""
