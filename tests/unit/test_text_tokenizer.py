import json
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from tokenizers import AddedToken, processors

from runtime.errors import InvalidConfig, InvalidRequest
from server.text.tokenizer import load_tokenizer
from tests.unit.text_samples import byte_level, save_model


def test_special_tokens_come_from_all_files(tmp_path: Path) -> None:
    pad = {"content": "<pad>", "lstrip": False, "__type": "AddedToken"}
    save_model(tmp_path, byte_level(), eos_token="</s>", pad_token=pad, mask_token=None)
    legacy = {"bos_token": {"content": "<s>"}, "eos_token": "ignored"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(legacy), encoding="utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}', encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    }
    assert tokenizer.eos_ids == {1, 2, 7}
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.vocab_size == len(tokenizer.backend.get_vocab())


def test_tokens_the_configuration_calls_special_are_special(tmp_path: Path) -> None:
    save_model(tmp_path, byte_level(), additional_special_tokens=["<think>", "<unheard-of>"])
    tokenizer = load_tokenizer(tmp_path)
    think = tokenizer.backend.token_to_id("<think>")
    assert think in tokenizer.special_ids
    assert tokenizer.backend.token_to_id("<unheard-of>") is None
    assert tokenizer.decode([think, 10]) == tokenizer.decode([10])


def test_special_tokens_are_added_only_on_request(tmp_path: Path) -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = load_tokenizer(save_model(tmp_path, backend))
    plain = tokenizer.encode("the fox</s>", add_special_tokens=False)
    assert tokenizer.encode("the fox</s>", add_special_tokens=True) == [0, *plain]
    assert plain[-1] == 1


def test_prompts_are_never_cut_or_padded(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = load_tokenizer(save_model(tmp_path, backend))
    text = "the quick brown fox jumps over the lazy dog"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("skip", [False, True])
def test_many_ids_have_the_texts_of_their_parts(tmp_path: Path, skip: bool) -> None:
    tokenizer = load_tokenizer(save_model(tmp_path, byte_level()))
    text = "the </s>quick brown fox\n" * 300
    ids = array("i", tokenizer.encode(text, add_special_tokens=False))
    assert len(ids) > 2000
    shown = text.replace("</s>", "") if skip else text
    assert tokenizer.decode(ids, skip_special_tokens=skip) == shown


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_model(tmp_path, byte_level()))
    with pytest.raises(InvalidRequest, match="Unicode"):
        tokenizer.encode("lone \ud800", add_special_tokens=False)


def test_added_tokens_that_only_the_configuration_has_are_not_invented(tmp_path: Path) -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken("<extra>", special=True)])
    tokenizer = load_tokenizer(save_model(tmp_path, backend, extra_special_tokens={"x": "<extra>"}))
    assert tokenizer.special_tokens == {"x": "<extra>"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer_config.json", "[1]"),
        ("special_tokens_map.json", "{"),
        ("generation_config.json", "5"),
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    save_model(tmp_path, byte_level())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=name):
        load_tokenizer(tmp_path)


def test_the_text_side_loads_no_model_framework() -> None:
    program = (
        "import sys, server.text.codec\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'grpc', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert found.stdout.strip() in ("[]", "['asyncio']")
