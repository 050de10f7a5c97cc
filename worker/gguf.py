"""Turns a GGUF file into a Hugging Face folder, without torch: vLLM itself reads no GGUF.

Quantised weights are expanded once to bfloat16; one tensor is in memory at a time. Only the llama
family is known here. Format: the gguf specification of the ggml project; rotary rows of attention
are interleaved in GGUF and split in halves in Hugging Face's layout.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from runtime.errors import InvalidConfig

ARCHITECTURE = "llama"

_CONTROL, _USER_DEFINED = 3, 4
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(source: Path, target: Path, *, progress: Callable[[str], None]) -> None:
    """Write config, tokenizer and weights of the GGUF file `source` into the folder `target`.

    Raises InvalidConfig when the file is no GGUF file or holds what is not supported.
    """
    progress(f"reading {source.name}")
    try:
        reader = GGUFReader(source)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InvalidConfig(f"{source} cannot be read as a GGUF file: {error}") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise InvalidConfig(
            f"{source.name} holds a model of architecture {architecture!r}; of GGUF files only "
            f"{ARCHITECTURE!r} is supported: use the model's Hugging Face folder instead"
        )
    names = {tensor.name for tensor in reader.tensors}
    try:
        config = _model_config(fields, tied="output.weight" not in names)
        _write_json(target / "config.json", config)
        _write_json(target / "generation_config.json", _generation_config(fields))
        _write_json(target / "tokenizer_config.json", _tokenizer_config(fields))
        _tokenizer(fields).save(str(target / "tokenizer.json"))
    except KeyError as error:
        raise InvalidConfig(f"{source.name} lacks the field {error}") from error
    progress(f"expanding {len(reader.tensors)} tensors")
    _write_safetensors(target / "model.safetensors", reader.tensors, config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    hidden = fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _stop_ids(fields),
        "head_dim": fields.get("llama.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


def _stop_ids(fields: Mapping[str, Any]) -> int | list[int]:
    end_of_text = fields["tokenizer.ggml.eos_token_id"]
    end_of_turn = fields.get("tokenizer.ggml.eot_token_id", end_of_text)
    return int(end_of_text) if end_of_turn == end_of_text else [end_of_text, end_of_turn]


def _generation_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    ids = {
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _stop_ids(fields),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in ids.items() if value is not None}


def _tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds_bos(fields),
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = fields.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    return config


def _adds_bos(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("tokenizer.ggml.add_bos_token", False))


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Build the byte-level BPE tokenizer; raises InvalidConfig for any other kind."""
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise InvalidConfig(
            f"this GGUF file's tokenizer is of kind {kind!r}; only byte-level BPE ('gpt2') is "
            "supported: use the model's Hugging Face folder instead"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InvalidConfig("this GGUF file's vocabulary holds the same token twice")
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if _adds_bos(fields):
        bos = fields["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", bos)]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for token, token_type in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if token_type == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by llama.cpp's name for it."""
    if pre in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if pre == "llama-bpe":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise InvalidConfig(
        f"this GGUF file's tokenizer splits text by the rules {pre!r}, which are not supported: "
        "use the model's Hugging Face folder instead"
    )


def _tensor_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; raises InvalidConfig for one it does not know."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or rest not in _LAYER_NAMES:
        raise InvalidConfig(f"this GGUF file holds the tensor {name!r}, which is not supported")
    return f"model.layers.{block}.{_LAYER_NAMES[rest]}"


def _write_safetensors(path: Path, tensors: list[ReaderTensor], config: Mapping[str, Any]) -> None:
    """Write all tensors as bfloat16 to `path`, in file order.

    Format: 8 bytes of header length, a JSON header padded with spaces to 8 bytes, the data
    (huggingface/safetensors, README). The library's writer wants all tensors in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + 2 * int(tensor.n_elements)
        header[_tensor_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": [int(size) for size in reversed(tensor.shape)],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for values in _weights(tensors, config):
            file.write(values.data)


def _weights(
    tensors: list[ReaderTensor], config: Mapping[str, Any]
) -> Iterator[npt.NDArray[np.uint16]]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for tensor in tensors:
        try:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise InvalidConfig(f"{tensor.name} is quantised as {kind}, not supported") from error
        if tensor.name.endswith("attn_q.weight"):
            values = split_rotary_halves(values, heads)
        elif tensor.name.endswith("attn_k.weight"):
            values = split_rotary_halves(values, kv_heads)
        yield to_bfloat16(values)


def split_rotary_halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of `weight` [heads * head_dim, hidden] from pairs to two halves per head."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; returns the 16 bits of each value."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
