"""The fast encoder says what the tokenizers library says, or is not used."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.fast_encoder import open_fast_encoder
from server.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.text_samples import byte_fallback, byte_level, word_piece

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
MIXED = st.lists(
    TEXTS | st.sampled_from(["<s>", "</s>", "<|im_end|>", "<think>", "né", " ", "\n\n", "the "]),
    max_size=8,
).map("".join)


def sped_up(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.speed_up()
    return tokenizer


FAST = {"bytes": sped_up(Tokenizer(byte_level())), "llama": sped_up(Tokenizer(byte_fallback()))}


@pytest.mark.parametrize("name", FAST)
@given(MIXED, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_same_ids(name: str, text: str, special: bool) -> None:
    tokenizer = FAST[name]
    assert tokenizer.is_fast
    expected = tokenizer.backend.encode(text, add_special_tokens=special).ids
    assert tokenizer.encode(text, add_special_tokens=special) == expected


@given(MIXED)
@settings(max_examples=300, deadline=None)
def test_the_bundled_model_is_encoded_fast_and_alike(model_folder: Path, text: str) -> None:
    tokenizer = _loaded(model_folder)
    assert tokenizer.is_fast
    expected = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_special_tokens=False) == expected


_LOADED: dict[Path, Tokenizer] = {}


def _loaded(folder: Path) -> Tokenizer:
    if folder not in _LOADED:
        _LOADED[folder] = sped_up(load_tokenizer(folder))
    return _LOADED[folder]


@pytest.mark.parametrize("make", [word_piece])
def test_what_it_does_not_implement_is_left_to_the_library(
    make: Callable[[], tokenizers.Tokenizer],
) -> None:
    backend = make()
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    assert open_fast_encoder(backend) is None
    tokenizer = sped_up(Tokenizer(backend))
    assert not tokenizer.is_fast
    assert tokenizer.encode("the fox", add_special_tokens=False) == backend.encode("the fox").ids
