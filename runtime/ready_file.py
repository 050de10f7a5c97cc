"""The file that tells scripts and supervisors where a process listens, once it is ready."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from runtime.errors import InvalidConfig


def write_ready_file(path: Path, content: Mapping[str, object]) -> None:
    """Write {"pid": …, **content} as JSON at once as a whole. Raises InvalidConfig."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode({"pid": os.getpid(), **content}) + b"\n")
        draft.replace(path)
    except OSError as error:
        raise InvalidConfig(
            f"cannot write ready file {path}: {error.strerror}", param="ready_file"
        ) from error


def remove_ready_file(path: Path) -> None:
    """Remove it, if it is there."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
