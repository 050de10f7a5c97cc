"""GGUF to Hugging Face: the tiny model exactly, the bundled model as users get it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import jinja2
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from runtime.errors import InvalidConfig
from tests.unit import tiny_gguf
from worker.gguf import convert, to_bfloat16
from worker.models import RECIPE, resolve_model

AWKWARD = [
    "hello 12345 world",
    "  two  spaces\n\n\ttabs \r\n",
    "日本語 🙂👩‍👩‍👧 mixed",
    "\x00\x01\ufffd",
    "don't I'LL naïve",
    "<|im_start|>user\nhi<|im_end|>",
    "١٢٣ ½ ²",
    "",
]

# SmolLM2's vocabulary lacks these control characters and the lead bytes of planes 4 to 11.
IN_VOCABULARY = st.characters(
    codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d"
)


def quietly(_: str) -> None:
    pass


def converted(source: Path, target: Path) -> Path:
    target.mkdir()
    convert(source, target, progress=quietly)
    return target


def read_json(path: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("bundled")
    yield resolve_model("smollm2", cache_dir=cache, progress=quietly).path
    for weights in cache.rglob("*.safetensors"):
        weights.unlink()


@pytest.fixture(scope="session")
def tokenizer(bundled: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bundled / "tokenizer.json"))


def test_weights_come_out_in_hugging_face_names_order_and_shape(tmp_path: Path) -> None:
    folder = converted(tiny_gguf.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    expected = tiny_gguf.weights()
    with safe_open(folder / "model.safetensors", "np") as file:
        assert len(list(file.keys())) == len(expected)
        for ours, theirs in {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
            "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
            "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
            "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
            "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        }.items():
            stored = file.get_tensor(ours)
            assert stored.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(stored, expected[theirs].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (gguf.GGMLQuantizationType.Q8_0, 0.03),
        (gguf.GGMLQuantizationType.Q4_1, 0.3),
        (gguf.GGMLQuantizationType.F16, 0.02),
    ],
)
def test_quantised_weights_come_out_near_what_they_were(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, tolerance: float
) -> None:
    source = tiny_gguf.write(tmp_path / "tiny.gguf", quantise=kind)
    folder = converted(source, tmp_path / "out")
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = file.get_tensor("model.layers.0.self_attn.q_proj.weight").astype(np.float32)
    difference = np.abs(stored - tiny_gguf.weights()["blk.0.attn_q.weight"])
    assert difference.max() < tolerance


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_rounding_to_bfloat16_is_to_nearest_ties_to_even(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)


def test_config_tells_sizes_and_tied_embeddings(tmp_path: Path) -> None:
    config = read_json(
        converted(tiny_gguf.write(tmp_path / "t.gguf"), tmp_path / "o") / "config.json"
    )
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert (config["hidden_size"], config["head_dim"]) == (64, 16)
    assert config["vocab_size"] == len(tiny_gguf.tokens())
    assert config["tie_word_embeddings"] is True


def test_an_output_tensor_unties_the_embeddings(tmp_path: Path) -> None:
    source = tiny_gguf.write(tmp_path / "t.gguf", extra_tensor="output.weight")
    folder = converted(source, tmp_path / "o")
    assert read_json(folder / "config.json")["tie_word_embeddings"] is False
    with safe_open(folder / "model.safetensors", "np") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118 (no mapping)


def test_a_model_that_wants_a_first_token_gets_it(tmp_path: Path) -> None:
    plain = converted(tiny_gguf.write(tmp_path / "p.gguf"), tmp_path / "plain")
    first = converted(tiny_gguf.write(tmp_path / "f.gguf", add_bos=True), tmp_path / "first")
    without = Tokenizer.from_file(str(plain / "tokenizer.json")).encode("hello").ids
    assert Tokenizer.from_file(str(first / "tokenizer.json")).encode("hello").ids == [1, *without]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "default", "llama-bpe"])
@pytest.mark.parametrize("text", AWKWARD)
def test_every_way_of_cutting_text_gives_it_back(tmp_path: Path, pre: str, text: str) -> None:
    folder = converted(tiny_gguf.write(tmp_path / "t.gguf", pre=pre), tmp_path / "o")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "qwen2"}, "qwen2"),
        ({"tokenizer": "llama"}, "'llama'"),
        ({"pre": "tekken"}, "tekken"),
        ({"extra_tensor": "rope_freqs.weight"}, "rope_freqs.weight"),
        ({"extra_tensor": "blk.0.attn_q.bias"}, "blk.0.attn_q.bias"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, str], named: str) -> None:
    source = tiny_gguf.write(tmp_path / "tiny.gguf", **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=named):
        converted(source, tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + b"\xff" * 400, b"GGUF\x03" + b"\0" * 90]
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "damaged.gguf"
    source.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"damaged\.gguf"):
        converted(source, tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf.write(tmp_path / "whole.gguf").read_bytes()
    source = tmp_path / "cut.gguf"
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidConfig, match=r"cut\.gguf"):
        converted(source, tmp_path / "out")


def test_the_bundled_model_has_all_its_weights(bundled: Path) -> None:
    with safe_open(bundled / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [49152, 576]
        assert file.get_slice("model.layers.29.self_attn.k_proj.weight").get_shape() == [192, 576]
    assert len(names) == 272


def test_the_recipe_number_changes_with_the_weights_it_makes(bundled: Path) -> None:
    with (bundled / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    assert (RECIPE, digest) == (1, "7ef915c9bf9d94d8")


@pytest.mark.parametrize("text", AWKWARD)
def test_the_bundled_tokenizer_gives_awkward_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(IN_VOCABULARY))
def test_the_bundled_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_bundled_chat_template_and_tokenizer_agree_on_special_tokens(
    bundled: Path, tokenizer: Tokenizer
) -> None:
    config = read_json(bundled / "tokenizer_config.json")
    template = jinja2.Environment().from_string(str(config["chat_template"]))
    text = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    ids = tokenizer.encode(text).ids
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert ids[0] == 1
    assert ids.count(1) == 3
    assert ids.count(2) == 2
