"""vLLM's log lines in our form, also in the processes it starts, and why a start failed.

vLLM reads a logging configuration from a file, in every process. Ours sends everything through
our own formatter; and while the engine starts it keeps exceptions for the one message that the
worker ends with, instead of showing their traces. `--log-level debug` or VLLM_LOGGING_LEVEL show
everything.
"""

import io
import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import Any

_FORMATTERS = {"text": "runtime.logs.TextFormatter", "json": "runtime.logs.JsonFormatter"}
_OUTPUT = "vllm.output"
QUIET = "ERROR"
"""vLLM's level unless somebody asks for more: its warnings at start speak to those who tune it."""


class StartCauses:
    """The exceptions of all processes of a starting engine, one line each, in a file.

    The file exists as long as the engine is starting: that is how its processes know.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "causes"
        self.path.touch()

    def first(self) -> str | None:
        """The first exception, which the later ones come from."""
        lines = self.path.read_text().splitlines()
        return lines[0] if lines else None

    def close(self) -> None:
        """From now on exceptions are shown with their traces. Idempotent."""
        self.path.unlink(missing_ok=True)


class StartFilter(logging.Filter):
    """Keeps what vLLM says while it starts to itself, the exceptions in `causes`, unless `show`."""

    def __init__(self, causes: str, show: bool) -> None:
        super().__init__()
        self._causes = Path(causes)
        self._show = show

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record."""
        if not record.name.startswith("vllm") or not self._causes.exists():
            return True
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            with self._causes.open("a") as causes:
                causes.write(first_cause(error) + "\n")
        return self._show


class OutputLog(io.TextIOBase):
    """Stands in for sys.stderr: each line that is printed becomes a line of the log."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._rest = ""
        self._logging = False

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        if self._logging:  # logging itself has failed and says so
            return int(self._stream.write(text))
        *lines, self._rest = (self._rest + text).split("\n")
        self._logging = True
        try:
            for line in filter(str.strip, lines):
                logging.getLogger(_OUTPUT).error("%s", line)
        finally:
            self._logging = False
        return len(text)

    def fileno(self) -> int:
        """The descriptor beneath, for what must write without Python."""
        return int(self._stream.fileno())


def log_printed_lines() -> None:
    """Send what this process prints on stderr, such as the trace it ends with, to the log.

    Only where logging is configured as described here: another program's vLLM is left alone.
    """
    ours = any(isinstance(it, StartFilter) for h in logging.root.handlers for it in h.filters)
    if ours and not isinstance(sys.stderr, OutputLog):
        sys.stderr = OutputLog(sys.stderr)
        logging.captureWarnings(True)


def configure_vllm_logs(folder: Path, causes: StartCauses, *, log_format: str, level: str) -> Path:
    """Log as described here in this process; returns the file that tells vLLM's others to."""
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": _FORMATTERS[log_format]}},
        "filters": {
            "start": {
                "()": f"{StartFilter.__module__}.{StartFilter.__name__}",
                "causes": str(causes.path),
                "show": level != QUIET,
            }
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "ours",
                "filters": ["start"],
            }
        },
        "loggers": {"vllm": {"level": level}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }
    logging.config.dictConfig(settings)
    path = folder / "logging.json"
    path.write_text(json.dumps(settings))
    return path


def adopt_loggers() -> None:
    """Have libraries that brought handlers of their own log as everybody does."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def first_cause(error: BaseException) -> str:
    """Return the one useful line of an exception's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    # pydantic wraps it in a heading and a link.
    told = [line for line in lines if line.startswith("Value error, ")]
    text = told[0].removeprefix("Value error, ") if told else lines[0]
    return text.partition(" [type=")[0]
