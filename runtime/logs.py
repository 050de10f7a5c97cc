"""Log lines on stderr, as text for people or JSON for machines. Standard logging beneath."""

import logging
import os
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import msgspec

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
# Given as `extra={"request_id": ...}`; the same names in both formats.
FIELDS = (
    "request_id", "endpoint", "principal", "model", "worker", "outcome", "input_tokens",
    "cached_tokens", "output_tokens", "queued_s", "first_token_s", "duration_s", "detail",
)  # fmt: skip
_PACKAGES = ("cli", "gateway_http", "server", "worker", "router", "wire", "runtime")


def configure_logging(*, level: str, log_format: str) -> None:
    """Send all logging to stderr. `level` holds for our packages; others speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    handler.addFilter(HiddenLevels())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_log_level(level)
    logging.captureWarnings(True)
    # C-core writes to stderr by itself, a line for each failed handshake, in a form of its own; it
    # looks here when it is loaded, which is later.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # noqa: TID251 - written, and here only


def set_log_level(level: str) -> None:
    """Set the level of our packages, at any time."""
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level.upper())


def log_level() -> str:
    """Return the level of our packages."""
    return logging.getLevelName(logging.getLogger(_PACKAGES[0]).level).lower()


class HiddenLevels(logging.Filter):
    """Keeps lines of some levels out, whatever the least level is."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: frozenset[str] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown."""
        return record.levelname.lower() not in self.levels


def hide_levels(levels: Collection[str]) -> None:
    """Show no lines of these levels from now on, and all others again."""
    for handler in logging.getLogger().handlers:
        for known in handler.filters:
            if isinstance(known, HiddenLevels):
                known.levels = frozenset(levels)


def set_log_format(form: str) -> None:
    """Set the form of lines: one of FORMATS, or "iso8601", text with the time in UTC."""
    for handler in logging.getLogger().handlers:
        if any(isinstance(known, HiddenLevels) for known in handler.filters):
            handler.setFormatter(_formatter(form))


def log_format() -> str:
    """Return the form of lines that was set last."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    if any(isinstance(it, JsonFormatter) for it in formatters):
        return "json"
    return "iso8601" if any(isinstance(it, _UtcFormatter) for it in formatters) else "text"


def _formatter(form: str) -> logging.Formatter:
    if form == "json":
        return JsonFormatter()
    return _UtcFormatter() if form == "iso8601" else TextFormatter()


class TextFormatter(logging.Formatter):
    """`time level logger: message field=value …`, one line unless there is a trace."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self.default_msec_format = "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Append the known fields to the message."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record) + fields


class _UtcFormatter(TextFormatter):
    """The same with the time as ISO 8601 has it, in UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__()
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.default_msec_format = "%s.%03dZ"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC, RFC 3339), level, logger, message, fields, trace."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def error_line(message: str) -> str:
    """Return what a process says last when it fails: for people, unless the log is JSON."""
    handlers = logging.getLogger().handlers
    if handlers and isinstance(handlers[0].formatter, JsonFormatter):
        record = {"name": "penstock", "levelname": "ERROR", "msg": message}
        return handlers[0].format(logging.makeLogRecord(record))
    return f"penstock: error: {message}"


def child_line(name: str, line: str, log_format: str, *, label: str | None = None) -> str:
    """Return a child process's line as its parent shows it: named, in text or in JSON.

    `label` stands for the name in text.
    """
    if log_format != "json":
        return f"{label or f'[{name}]'} {line}"
    try:
        entry = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": now, "level": "info", "logger": "output", "message": line}
    return msgspec.json.encode(entry | {"process": name}).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
