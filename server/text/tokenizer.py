"""A model folder's fast tokenizer: text to ids and back, special tokens, end-of-text ids.

Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
`generation_config.json` of a Hugging Face model folder; only the first one must exist.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from runtime.errors import InvalidConfig, InvalidRequest
from server.text.fast_encoder import Encoder, open_fast_encoder

_log = logging.getLogger(__name__)

_MANY = 1024  # ids, of which a text takes 0.3 ms
_NAMED_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens")


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads.

    `backend` is the library's object, `special_tokens` maps names such as `bos_token` to their
    text (what chat templates see), `special_ids` are left out of text on request, `added_ids` are
    all ids outside the base vocabulary, and each of `eos_ids` ends a text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        # A prompt is never cut or filled up, whatever the tokenizer was saved with.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.eos_ids = frozenset(eos_ids)
        added = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._fast: Encoder | None = None

    def speed_up(self) -> None:
        """Encode by the faster encoder from now on, if it proves equal; see `fast_encoder`."""
        self._fast = open_fast_encoder(self.backend)

    @property
    def is_fast(self) -> bool:
        """Whether texts are encoded by the faster encoder."""
        return self._fast is not None

    def encode(self, text: str, *, add_special_tokens: bool, param: str | None = None) -> list[int]:
        """Return the ids of `text`. Raises InvalidRequest (with `param`) if it is not Unicode."""
        if self._fast is not None:
            try:
                return self._fast.encode(text, add_special_tokens=add_special_tokens)
            except Exception:  # noqa: BLE001 - what it cannot do, the backend does or refuses
                _log.debug("a text that the fast encoder refuses", exc_info=True)
        try:
            # The batch call, unlike `encode`, lets other threads run meanwhile.
            encoded = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (UnicodeError, TypeError):
            raise InvalidRequest("the text is not valid Unicode", param=param) from None
        ids: list[int] = encoded[0].ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; unknown ids have none, bad UTF-8 becomes U+FFFD."""
        if len(ids) < _MANY:
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        # Unlike `decode` it lets other threads run meanwhile.
        return self.backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder. Raises InvalidConfig naming the file at fault."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidConfig(f"{folder} has no tokenizer.json: a fast tokenizer is needed")
    config = read_json(folder / "tokenizer_config.json")
    legacy = read_json(folder / "special_tokens_map.json")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise InvalidConfig(f"{path} cannot be read: {error}") from None
    named = {**_named_tokens(legacy), **_named_tokens(config)}
    _mark_special(backend, [*named.values(), *_more_tokens(legacy), *_more_tokens(config)])
    return Tokenizer(backend, special_tokens=named, eos_ids=_eos_ids(folder, backend, named))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty when there is no file. Raises InvalidConfig."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidConfig(f"{path} cannot be read: {error}") from None


def _token_text(value: object) -> str | None:
    # Saved either as plain text or as an AddedToken object.
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    more = config.get("extra_special_tokens")
    values = {**(more if isinstance(more, dict) else {}), **config}
    names = [*_NAMED_TOKENS, *(more if isinstance(more, dict) else ())]
    texts = {name: _token_text(values.get(name)) for name in names}
    return {name: text for name, text in texts.items() if text is not None}


def _more_tokens(config: Mapping[str, Any]) -> list[str]:
    lists = [config.get(name) for name in _MORE_TOKENS]
    texts = [_token_text(v) for values in lists if isinstance(values, list) for v in values]
    return [text for text in texts if text is not None]


def _mark_special(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> None:
    """Make tokens special that only the configuration calls so; invents no new ids."""
    added = backend.get_added_tokens_decoder().values()
    known = {token.content for token in added if token.special}
    missing = dict.fromkeys(
        text for text in texts if text not in known and backend.token_to_id(text) is not None
    )
    if missing:
        backend.add_special_tokens(list(missing))


def _eos_ids(folder: Path, backend: tokenizers.Tokenizer, named: Mapping[str, str]) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found = {i for i in ids if isinstance(i, int)}
        if found:
            break
    own = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return found if own is None else found | {own}
