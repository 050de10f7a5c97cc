from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import Detokenization, Detokenizer
from server.text.tokenizer import Tokenizer, load_tokenizer
from server.text.vocabulary import DecoderKind, read_decoder
from tests.unit.text_samples import SAMPLES

DETOKENIZATIONS = {name: Detokenization(tokenizer) for name, tokenizer in SAMPLES.items()}
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["日本語のテキスト", "👩‍👩‍👧 emoji 😀", "  two  spaces ", "<think>x</think>", "naïve — né"]
    ),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[int], list[int], bool]:
    """A tokenizer's name, ids of it, where chunks end, and whether specials are skipped."""
    name = draw(st.sampled_from(sorted(SAMPLES)))
    tokenizer = SAMPLES[name]
    text_ids = TEXTS.map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    loose_ids = st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=25)
    special_ids = st.lists(st.sampled_from(sorted(tokenizer.added_ids)), max_size=3)
    parts = draw(st.lists(st.one_of(text_ids, loose_ids, special_ids), max_size=5))
    ids = [token_id for part in parts for token_id in part]
    borders = draw(st.lists(st.integers(0, len(ids)), max_size=len(ids)))
    return name, ids, sorted(borders), draw(st.booleans())


def chunks(ids: Sequence[int], borders: Sequence[int]) -> list[Sequence[int]]:
    ends = [*borders, len(ids)]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def join(detokenizer: Detokenizer, parts: Sequence[Sequence[int]]) -> str:
    return "".join([*map(detokenizer.feed, parts), detokenizer.flush()])


def test_each_decoder_gets_the_fastest_way_that_is_exact() -> None:
    kinds = {name: read_decoder(tokenizer) for name, tokenizer in SAMPLES.items()}
    assert kinds == {
        "byte level": DecoderKind.BYTES,
        "byte fallback": DecoderKind.PIECES,
        "metaspace": DecoderKind.PIECES,
        "word piece": DecoderKind.PIECES,
        "no decoder": DecoderKind.PIECES,
        "end of word": DecoderKind.OTHER,
        "strip words": DecoderKind.OTHER,
    }


@settings(max_examples=200, deadline=None)
@given(streams())
def test_joined_deltas_are_the_tokenizers_own_decode(
    stream: tuple[str, list[int], list[int], bool],
) -> None:
    name, ids, borders, skip = stream
    detokenizer = DETOKENIZATIONS[name].open(skip_special_tokens=skip)
    expected = SAMPLES[name].decode(ids, skip_special_tokens=skip)
    assert join(detokenizer, chunks(ids, borders)) == expected


@settings(max_examples=100, deadline=None)
@given(streams(), TEXTS)
def test_after_a_prompt_the_text_goes_on_where_the_prompt_ended(
    stream: tuple[str, list[int], list[int], bool], prompt: str
) -> None:
    name, ids, borders, skip = stream
    tokenizer = SAMPLES[name]
    prompt_ids = tokenizer.encode(prompt + " word", add_special_tokens=False)
    before = tokenizer.decode(prompt_ids, skip_special_tokens=skip)
    both = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=skip)
    if not both.startswith(before):
        return
    detokenizer = DETOKENIZATIONS[name].open(skip_special_tokens=skip, prompt_ids=prompt_ids)
    assert join(detokenizer, chunks(ids, borders)) == both[len(before) :]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=10))
def test_any_bytes_come_out_as_the_tokenizer_decodes_them(data: bytes, borders: list[int]) -> None:
    for name in ("byte level", "byte fallback"):
        tokenizer = SAMPLES[name]
        ids = [byte_id(tokenizer, byte) for byte in data]
        inside = sorted(min(border, len(ids)) for border in borders)
        joined = join(DETOKENIZATIONS[name].open(), chunks(ids, inside))
        assert joined == tokenizer.decode(ids)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    form = tokenizer.backend.token_to_id(f"<0x{byte:02X}>")
    if form is not None:
        return form
    # The byte-level alphabet in byte order, as the pre-tokenizer writes it.
    token = ALPHABET[byte]
    found = tokenizer.backend.token_to_id(token)
    assert found is not None
    return found


def _alphabet() -> dict[int, str]:
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in kept}
    missing = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + i) for i, byte in enumerate(missing)}


ALPHABET = _alphabet()


def test_a_character_is_held_until_its_last_byte() -> None:
    tokenizer = SAMPLES["byte level"]
    detokenizer = DETOKENIZATIONS["byte level"].open()
    ids = [byte_id(tokenizer, byte) for byte in "€".encode()]
    assert [detokenizer.feed([token_id]) for token_id in ids] == ["", "", "€"]
    assert detokenizer.flush() == ""


def test_a_stream_cut_inside_a_character_ends_in_a_replacement_character() -> None:
    tokenizer = SAMPLES["byte level"]
    detokenizer = DETOKENIZATIONS["byte level"].open()
    assert detokenizer.feed([byte_id(tokenizer, 0xE2), byte_id(tokenizer, 0x82)]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_one_bad_byte_replaces_its_whole_run_of_byte_tokens() -> None:
    tokenizer = SAMPLES["byte fallback"]
    detokenizer = DETOKENIZATIONS["byte fallback"].open()
    ids = [byte_id(tokenizer, byte) for byte in "€".encode() + b"\xff"]
    assert detokenizer.feed(ids) == ""
    assert detokenizer.flush() == tokenizer.decode(ids) == "\ufffd" * 4


def test_added_tokens_in_a_row_can_stand_without_spaces_between_them() -> None:
    tokenizer = SAMPLES["word piece"]
    end = tokenizer.backend.token_to_id("</s>")
    assert end is not None
    word = tokenizer.encode("the", add_special_tokens=False)
    detokenization = DETOKENIZATIONS["word piece"]
    spaced = detokenization.open(skip_special_tokens=False)
    assert spaced.feed([*word, end, end]) == "the </s> </s>"
    tight = detokenization.open(skip_special_tokens=False, spaces_between_special_tokens=False)
    assert tight.feed([*word, end, end]) == "the </s></s>"


@pytest.mark.parametrize("name", ["byte level", "byte fallback", "metaspace"])
def test_token_texts_joined_are_the_text(name: str) -> None:
    tokenizer = SAMPLES[name]
    ids = tokenizer.encode("the lazy dog", add_special_tokens=False)
    texts = [DETOKENIZATIONS[name].token_text(token_id) for token_id in ids]
    assert "".join(texts).strip() == "the lazy dog"
    assert any(text.startswith(" ") for text in texts)


def test_tokens_that_are_parts_of_characters_have_the_bytes_of_the_text() -> None:
    text = "a 😀 naïve 日本"
    tokenizer, detokenization = SAMPLES["byte level"], DETOKENIZATIONS["byte level"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = [detokenization.token_part(token_id) for token_id in ids]
    assert any(part is not None for part in parts)
    texts = [detokenization.token_text(token_id).encode() for token_id in ids]
    whole = b"".join(it if part is None else part for it, part in zip(texts, parts, strict=True))
    assert whole.decode() == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 49_151), max_size=40), st.lists(st.integers(0, 40)), st.booleans())
def test_random_streams_of_the_bundled_model_decode_alike(
    model_folder: Path, ids: list[int], borders: list[int], skip: bool
) -> None:
    tokenizer = bundled(model_folder)
    detokenizer = Detokenization(tokenizer).open(skip_special_tokens=skip)
    inside = sorted(min(border, len(ids)) for border in borders)
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert join(detokenizer, chunks(ids, inside)) == expected


@cache
def bundled(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_the_bundled_models_tokens_all_decode_alike(model_folder: Path) -> None:
    tokenizer = bundled(model_folder)
    ids = list(range(tokenizer.vocab_size + 5))
    for skip in (False, True):
        detokenizer = Detokenization(tokenizer).open(skip_special_tokens=skip)
        parts = chunks(ids, range(0, len(ids), 7))
        assert join(detokenizer, parts) == tokenizer.decode(ids, skip_special_tokens=skip)
