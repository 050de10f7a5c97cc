"""What each token id adds to a text, worked out on first use and shared by all requests.

Two kinds of decoders allow that: ByteLevel, where a token is some bytes of UTF-8, and those where
a token's text depends only on being the first one. `decode` of the tokenizers library 0.23 is the
reference for both; `read_decoder` tells which kind a tokenizer has.
"""

import json
from enum import Enum
from typing import Any

import tokenizers

from server.text.tokenizer import Tokenizer


class DecoderKind(Enum):
    """How the text of a stream of ids can be put together."""

    BYTES = "bytes"
    PIECES = "pieces"
    OTHER = "other"


_PER_TOKEN = {"Replace", "Strip", "Metaspace", "WordPiece"}


def read_decoder(tokenizer: Tokenizer) -> DecoderKind:
    """Return the kind of a tokenizer's decoder."""
    steps = _steps(tokenizer.backend)
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return DecoderKind.BYTES
    if tokenizer.backend.token_to_id("") is not None or not _is_per_token(steps, names):
        return DecoderKind.OTHER
    return DecoderKind.PIECES


def _steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return steps


def _is_per_token(steps: list[dict[str, Any]], names: list[str]) -> bool:
    """Per-token steps, then ByteFallback, Fuse, and one character stripped from the start."""
    rest = list(names)
    while rest and rest[0] in _PER_TOKEN:
        rest.pop(0)
    head = steps[: len(names) - len(rest)]
    if any(step["type"] == "Replace" and not step["content"] for step in head):
        # A token that vanishes would leave the strip at the start to the one after it.
        return False
    if rest[:1] == ["ByteFallback"]:
        rest.pop(0)
    if rest == ["Fuse", "Strip"]:
        return bool(steps[-1]["start"] <= 1 and steps[-1]["stop"] == 0)
    return rest in ([], ["Fuse"])


def _byte_characters() -> dict[str, int]:
    """The printable stand-ins of bytes in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(plain))
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES_OF = _byte_characters()


class ByteTexts(dict[int, str | None]):
    """Id -> text of a ByteLevel tokenizer, None where the bytes are not whole characters.

    `raw` gives the bytes. Ids that are unknown, or special where those are skipped, have none.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        super().__init__()
        self._token_of = tokenizer.backend.id_to_token
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()

    def __missing__(self, token_id: int) -> str | None:
        token = self._token_of(token_id)
        if token is None:
            return ""
        try:
            text: str | None = self.raw(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text

    def raw(self, token_id: int) -> bytes:
        """Return a token's bytes."""
        token = None if token_id in self._skipped else self._token_of(token_id)
        if token is None:
            return b""
        try:
            return bytes([_BYTES_OF[character] for character in token])
        except KeyError:
            return token.encode()


class PieceTexts(dict[int, str | None]):
    """Id -> text after the first position, for decoders of kind PIECES; None: no token at all.

    `byte_ids` are byte-fallback tokens, of which only a whole run has a text (`run`).
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self.byte_ids = _byte_ids(tokenizer)
        self._anchor = self._find_anchor()
        self._anchor_text = self._decode([self._anchor])

    def __missing__(self, token_id: int) -> str | None:
        if token_id in self._skipped:
            text = None
        elif self._tokenizer.backend.id_to_token(token_id) is None:
            return None
        else:
            text = self.run([token_id], first=False)
        self[token_id] = text
        return text

    def run(self, ids: list[int], *, first: bool) -> str:
        """Return the text of ids that belong together, at the start of a text or inside it."""
        if first:
            return self._decode(ids)
        return self._decode([self._anchor, *ids])[len(self._anchor_text) :]

    def content(self, token_id: int) -> str:
        """Return a token as the vocabulary has it."""
        return self._tokenizer.backend.id_to_token(token_id) or ""

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _find_anchor(self) -> int:
        for token_id in range(self._tokenizer.vocab_size):
            text = "" if token_id in self.byte_ids else self._decode([token_id])
            if text.strip() and self._decode([token_id, token_id]).startswith(text):
                return token_id
        return 0


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    if all(step["type"] != "ByteFallback" for step in _steps(tokenizer.backend)):
        return frozenset()
    # All forms that Rust's u8::from_str_radix takes.
    digits = "0123456789abcdefABCDEF"
    forms = (f"<0x{high}{low}>" for high in "+" + digits for low in digits)
    ids = (tokenizer.backend.token_to_id(form) for form in forms)
    return frozenset(i for i in ids if i is not None)
