"""A secret that two processes share: one sends it, the other demands it. From a file or a variable.

A file may hold several, one a line: the first is sent and all are accepted, so that they can be
changed one process at a time.
"""

import hmac
from collections.abc import Mapping
from pathlib import Path

from runtime.access import bearer, key_digest, presented_key
from runtime.errors import InvalidConfig, Unauthenticated
from runtime.reloading import Reloading

_LEAST_CHARACTERS = 16  # fewer can be guessed


class SharedToken:
    """The tokens in `file`, read again when it changes, or else the one that is `value`.

    `flag` names the file's option in messages. Raises InvalidConfig for a token that is no token.
    """

    def __init__(self, *, file: Path | None, value: str | None = None, flag: str) -> None:
        self._fixed = () if value is None else (_checked(value, f"the variable for {flag}"),)
        self._file = None
        if file is not None:
            self._file = Reloading([file], lambda: _read(file, flag))

    def principal(self, metadata: Mapping[str, str]) -> str:
        """Let a peer of the fleet in (a runtime.access.Access)."""
        sent = key_digest(presented_key(metadata))
        matches = [hmac.compare_digest(sent, key_digest(token)) for token in self._tokens()]
        if not any(matches):
            raise Unauthenticated("the token is not one of this fleet's")
        return "fleet"

    def metadata(self) -> Mapping[str, str]:
        """Return what a call carries to present the token (RpcChannel's `call_metadata`)."""
        return bearer(self._tokens()[0])

    def _tokens(self) -> tuple[str, ...]:
        return self._fixed if self._file is None else self._file.current


def _read(file: Path, flag: str) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidConfig(f"{flag} {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{flag} {file}: is not text") from None
    tokens = tuple(
        _checked(line.strip(), f"{flag} {file}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not tokens:
        raise InvalidConfig(f"{flag} {file}: holds no token")
    return tokens


def _checked(token: str, where: str) -> str:
    if len(token) < _LEAST_CHARACTERS or not all("!" <= letter <= "~" for letter in token):
        raise InvalidConfig(
            f"{where}: a token is at least {_LEAST_CHARACTERS} ASCII characters without spaces"
        )
    return token
