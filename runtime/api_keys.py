"""API keys of clients, with limits: from a YAML file, read again when it changes, and a variable.

Only hashes are held, and no text made here shows a key or a part of the file.
"""

import hmac
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from runtime.access import key_digest, presented_key
from runtime.errors import InvalidConfig, Overloaded, Unauthenticated
from runtime.reloading import Reloading

_LOG = logging.getLogger(__name__)
# msgspec quotes the field, and a misplaced key may stand there.
_UNKNOWN_FIELD = re.compile("Object contains unknown field `.*?`")
_GUESSABLE_CHARACTERS = 16

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[!-~]+$")]
_Plain = Annotated[str, msgspec.Meta(min_length=1, pattern="^[!-~]+$")]
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the file. `sha256` is the key's hash in hexadecimal, in place of the key."""

    name: _Name
    key: _Plain | None = None
    sha256: _Sha256 | None = None
    requests_per_minute: _Count | None = None
    max_concurrency: _Count | None = None


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What the caller of one name may do, over all of its keys."""

    requests_per_minute: int | None = None
    max_concurrency: int | None = None


class _Table:
    """Entries, ready to be asked. Raises InvalidConfig for entries that contradict each other."""

    def __init__(self, entries: Sequence[ApiKey], where: str) -> None:
        self.allowances: dict[str, _Allowance] = {}
        self._by_start: dict[bytes, list[tuple[bytes, str]]] = {}
        for entry in entries:
            self._add(entry, where)
        if not entries:
            raise InvalidConfig(f"{where}: holds no key", param="api_keys_file")

    def found(self, digest: bytes) -> Sequence[tuple[bytes, str]]:
        """Return the (digest, name) pairs to compare: those that begin alike.

        How long that takes tells of two bytes of a hash, which is nothing of a key.
        """
        return self._by_start.get(digest[:2], ())

    def _add(self, entry: ApiKey, where: str) -> None:
        allowance = _Allowance(entry.requests_per_minute, entry.max_concurrency)
        if self.allowances.setdefault(entry.name, allowance) != allowance:
            raise InvalidConfig(
                f"{where}: {entry.name!r} stands there twice with different limits",
                param="api_keys_file",
            )
        digest = bytes.fromhex(entry.sha256 or "")
        if any(digest == other for other, _ in self.found(digest)):
            raise InvalidConfig(
                f"{where}: the key of {entry.name!r} stands there twice", param="api_keys_file"
            )
        self._by_start.setdefault(digest[:2], []).append((digest, entry.name))


class ApiKeys:
    """Knows callers by their keys and holds them to their limits (an Access and a Limits).

    `file` is a list of ApiKey; `variable` holds plain keys, separated by commas, which get the
    names key-1, key-2, … and no limits. Several keys may have one name, so that a caller can
    change keys; they share its limits. Raises InvalidConfig naming what is wrong.
    """

    def __init__(self, *, file: Path | None, variable: str | None) -> None:
        fixed = _from_variable(variable)
        self._fixed = self._file = None
        if file is None:
            self._fixed = _Table(fixed, "PENSTOCK_API_KEY")
        else:
            where = f"--api-keys-file {file}"
            self._file = Reloading([file], lambda: _Table([*fixed, *_read(file, where)], where))
        self._running: Counter[str] = Counter()
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    def principal(self, metadata: Mapping[str, str]) -> str:
        """Return the name of the key that a call carries. Raises Unauthenticated."""
        sent = key_digest(presented_key(metadata))
        for digest, name in self._table.found(sent):
            if hmac.compare_digest(digest, sent):
                return name
        raise Unauthenticated("the API key is not known here")

    def enter(self, principal: str | None) -> None:
        """Count one that begins. Raises Overloaded, or Unauthenticated for a withdrawn key."""
        if principal is None:
            return
        allowed = self._table.allowances.get(principal)
        if allowed is None:
            raise Unauthenticated("the API key that began this call is no longer known here")
        most = allowed.max_concurrency
        if most is not None and self._running[principal] >= most:
            raise Overloaded(f"this API key may have {most} requests at a time", retry_after_s=1)
        if allowed.requests_per_minute is not None:
            self._take_turn(principal, allowed.requests_per_minute)
        self._running[principal] += 1

    def leave(self, principal: str | None) -> None:
        """Count the end of a request."""
        if principal is not None:
            self._running[principal] -= 1
            if not self._running[principal]:
                del self._running[principal]

    @property
    def _table(self) -> _Table:
        if self._file is not None:
            return self._file.current
        assert self._fixed is not None
        return self._fixed

    def _take_turn(self, principal: str, per_minute: int) -> None:
        limit = RateLimitItemPerMinute(per_minute)
        if self._rates.hit(limit, principal):
            return
        free_at = self._rates.get_window_stats(limit, principal).reset_time
        wait_s = free_at - time.time()  # noqa: TID251 - the library's clock
        raise Overloaded(
            f"this API key may begin {per_minute} requests per minute",
            retry_after_s=max(1, math.ceil(wait_s)),
        )


def _from_variable(variable: str | None) -> list[ApiKey]:
    if variable is None:
        return []
    keys = [key.strip() for key in variable.split(",")]
    try:
        return [
            _hashed(msgspec.convert({"name": f"key-{number}", "key": key}, ApiKey), "the variable")
            for number, key in enumerate(keys, 1)
        ]
    except msgspec.ValidationError:
        raise InvalidConfig(
            "PENSTOCK_API_KEY: keys are ASCII characters without spaces, with commas between",
            param="api_key",
        ) from None


def _read(file: Path, where: str) -> list[ApiKey]:
    try:
        entries = msgspec.convert(_parsed(file), list[ApiKey], strict=False)
        return [_hashed(it, f"{where}: entry {number}") for number, it in enumerate(entries, 1)]
    except OSError as error:
        why = f"{error.strerror}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = f"line {mark.line + 1} is not YAML" if mark else "is not YAML"
    except (yaml.YAMLError, RecursionError):
        why = "is not YAML"
    except msgspec.ValidationError as error:
        why = _UNKNOWN_FIELD.sub(
            f"only {', '.join(ApiKey.__struct_fields__)} are known", str(error)
        )
    raise InvalidConfig(f"{where}: {why}", param="api_keys_file")


def _hashed(entry: ApiKey, where: str) -> ApiKey:
    """Return the entry without its key in plain."""
    if (entry.key is None) == (entry.sha256 is None):
        raise InvalidConfig(f"{where}: needs either key or sha256", param="api_keys_file")
    if entry.key is None:
        return entry
    if len(entry.key) < _GUESSABLE_CHARACTERS:
        _LOG.warning("%s: the key of %s is short enough to be guessed", where, entry.name)
    return msgspec.structs.replace(entry, key=None, sha256=key_digest(entry.key).hex())


def _parsed(file: Path) -> Any:
    # This loader makes texts only: a key of digits is one too.
    found = yaml.load(file.read_bytes(), yaml.BaseLoader)
    return [] if found in (None, "") else found
