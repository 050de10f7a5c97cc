"""Ids to text as they come: joined, the pieces are the tokenizer's own decode of all ids."""

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

from server.text.tokenizer import Tokenizer
from server.text.vocabulary import ByteTexts, DecoderKind, PieceTexts, read_decoder

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 8


class Detokenizer(Protocol):
    """Turns one stream of ids into text. Not safe for use by several threads."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """Return the text that is certain by now; partial characters are held back."""
        ...

    def flush(self) -> str:
        """Return what is held back, U+FFFD for what never became a character. Ends the stream."""
        ...


class Detokenization:
    """A tokenizer's way from ids to text: opens one detokenizer per stream."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kind = read_decoder(tokenizer)
        self._bytes: dict[bool, ByteTexts] = {}
        self._pieces: dict[bool, PieceTexts] = {}
        for skip in (False, True):
            if self._kind is DecoderKind.BYTES:
                self._bytes[skip] = ByteTexts(tokenizer, skip_special_tokens=skip)
            elif self._kind is DecoderKind.PIECES:
                self._pieces[skip] = PieceTexts(tokenizer, skip_special_tokens=skip)

    def open(
        self,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
    ) -> Detokenizer:
        """Begin a stream. With `prompt_ids` its text is what follows the prompt's text.

        That matters to decoders that drop the space before a text's first word. Without
        `spaces_between_special_tokens` (and with special tokens shown) an added token right after
        another stands without its space, as in vLLM.
        """
        if self._kind is DecoderKind.BYTES:
            return ByteDetokenizer(self._bytes[skip_special_tokens])
        tight = not (skip_special_tokens or spaces_between_special_tokens)
        if self._kind is DecoderKind.PIECES:
            pieces = self._pieces[skip_special_tokens]
            first = all(pieces[token_id] is None for token_id in prompt_ids)
            added = self._tokenizer.added_ids if tight else frozenset[int]()
            return PieceDetokenizer(pieces, first=first, added=added)
        hidden = self._tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        context = [i for i in prompt_ids[-64:] if i not in hidden][-_CONTEXT_TOKENS:]
        return WindowDetokenizer(self._tokenizer, context, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Return one token's own text as it stands inside a text; "" for an unknown id."""
        if self._kind is DecoderKind.BYTES:
            text = self._bytes[False][token_id]
            if text is None:
                return self._bytes[False].raw(token_id).decode(errors="replace")
            return text
        if self._kind is DecoderKind.PIECES:
            return self._pieces[False][token_id] or ""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def token_part(self, token_id: int) -> bytes | None:
        """Return the bytes of a token that are no whole characters; None for all others."""
        if self._kind is not DecoderKind.BYTES or self._bytes[False][token_id] is not None:
            return None
        return self._bytes[False].raw(token_id)


class ByteDetokenizer:
    """For ByteLevel decoders: a table look-up per token, UTF-8 decoding for partial characters."""

    __slots__ = ("_partial", "_texts")

    def __init__(self, texts: ByteTexts) -> None:
        self._texts = texts
        self._partial = b""

    def feed(self, token_ids: Sequence[int]) -> str:
        """Return the text of all complete characters."""
        texts = self._texts
        if len(token_ids) == 1 and not self._partial:
            text = texts[token_ids[0]]
            if text is not None:
                return text
        parts: list[str] = []
        partial = self._partial
        for token_id in token_ids:
            text = None if partial else texts[token_id]
            if text is None:
                data = partial + texts.raw(token_id)
                text, used = utf_8_decode(data, "replace", False)
                partial = data[used:]
            parts.append(text)
        self._partial = partial
        return "".join(parts)

    def flush(self) -> str:
        """Return U+FFFD for a character that was never completed."""
        partial, self._partial = self._partial, b""
        return partial.decode(errors="replace")


class PieceDetokenizer:
    """For decoders where a token's text depends only on being the first one.

    Byte-fallback tokens are held until their run ends: one bad byte makes the tokenizer replace
    all characters of the run, so none of them is certain before.
    """

    def __init__(self, pieces: PieceTexts, *, first: bool, added: frozenset[int]) -> None:
        self._pieces = pieces
        self._first = first
        self._added = added
        self._after_added = False
        self._run: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """Return the text of all tokens but a last run of byte tokens."""
        parts: list[str] = []
        for token_id in token_ids:
            piece = self._pieces[token_id]
            if piece is None:
                continue
            if token_id in self._pieces.byte_ids:
                self._run.append(token_id)
                continue
            parts.append(self.flush())
            if self._first:
                piece = self._pieces.run([token_id], first=True)
                self._first = False
            elif self._added:
                piece = self._tight(token_id, piece)
            self._after_added = token_id in self._added
            parts.append(piece)
        return "".join(parts)

    def flush(self) -> str:
        """Return the text of the run of byte tokens at the end."""
        if not self._run:
            return ""
        text = self._pieces.run(self._run, first=self._first)
        self._run = []
        self._first = self._after_added = False
        return text

    def _tight(self, token_id: int, piece: str) -> str:
        if self._after_added and token_id in self._added:
            return self._pieces.content(token_id)
        return piece


class WindowDetokenizer:
    """For all other decoders: decodes the last tokens again and sends what is new.

    A decoder may change its mind about text that was sent; such a stream is held to its end, where
    the decode of everything decides what is missing.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: list[int], *, skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = context
        self._window = 0
        self._read = len(context)
        self._context_text = self._decode(context)
        self._shown = self._context_text
        self._sent: list[str] = []
        self._settled = True

    def feed(self, token_ids: Sequence[int]) -> str:
        """Return the new text, unless its end may still change."""
        self._ids.extend(token_ids)
        if not self._settled:
            return ""
        text = self._decode(self._ids[self._window :])
        self._settled = text.startswith(self._shown)
        if not self._settled or text.endswith(_REPLACEMENT) or len(text) == len(self._shown):
            return ""
        fresh = text[len(self._shown) :]
        recent = self._decode(self._ids[self._read :])
        if recent.strip():
            self._window, self._shown = self._read, recent
        else:
            # Decoders strip spaces at the start of a text, here that of a window of spaces only.
            self._shown = text
        self._read = len(self._ids)
        self._sent.append(fresh)
        return fresh

    def flush(self) -> str:
        """Return what the decode of all ids has beyond the text sent so far."""
        sent = self._context_text + "".join(self._sent)
        text = self._decode(self._ids)
        self._ids, self._sent, self._context_text = [], [], ""
        return text[len(sent) :] if text.startswith(sent) else ""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
