"""What every discovery back end shares: the names it accepts, and changes between two states."""

import re
from collections.abc import Mapping

import msgspec

from runtime.discovery import Change, Delete, Put, Record
from runtime.errors import InvalidConfig

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def check_name(field: str, value: str) -> None:
    """Raise InvalidConfig unless `value` may be a record's kind or id."""
    if not _NAME.fullmatch(value):
        raise InvalidConfig(
            f"discovery {field} {value!r}: use 1 to 128 of a-z 0-9 . _ -, a letter or digit first",
            param=field,
        )


def check_record(record: Record) -> None:
    """Raise InvalidConfig if a record's names are bad or its value is not JSON."""
    check_name("kind", record.kind)
    check_name("id", record.id)
    check_value(record.value)


def check_value(value: bytes) -> None:
    """Raise InvalidConfig if `value` is not one JSON document."""
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
        msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise InvalidConfig(f"discovery value is not JSON: {error}", param="value") from error


def changes_between(kind: str, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[Change]:
    """Return what leads from {id: value} `old` to `new`: deletes first, then puts in new's order.

    A watcher that is told differences between states may skip states in between, and never
    misses one that lasts.
    """
    changes: list[Change] = [Delete(kind=kind, id=gone) for gone in old if gone not in new]
    for record_id, value in new.items():
        if old.get(record_id) != value:
            changes.append(Put(record=Record(kind=kind, id=record_id, value=value)))
    return changes
