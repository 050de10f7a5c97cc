"""Small real tokenizers of every decoder kind, trained here in milliseconds."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from server.text.tokenizer import Tokenizer as TextTokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then it doesn't jump any more .",
    "Hello world! Hello there, how are you? I'm fine; you're not.",
    "Größe, naïve café, déjà vu — “quoted” text…",
    "日本語のテキスト と 中文文本 그리고 한국어 텍스트",
    "emoji 😀😀 👩‍👩‍👧 done\n\nnew   line\ttab",
] * 3
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
PLAIN = [AddedToken("<think>", special=False, normalized=False), AddedToken("né", special=False)]


def byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Like Llama 2: spaces as "▁", one space stripped from the start, bytes for the rest."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *SPECIAL], limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())
    vocab = trained["model"]["vocab"]
    for token in tokens:
        vocab[token] = len(vocab)
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(PLAIN)
    return tokenizer


def no_decoder() -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.decoder = None
    return tokenizer


def end_of_word() -> Tokenizer:
    """Words end in "</w>": the decoder has to see the next token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", *SPECIAL],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def strip_words() -> Tokenizer:
    """Strips what belongs to no single token, so that the window has to do it."""
    tokenizer = metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    )
    return tokenizer


MAKERS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "metaspace": metaspace,
    "word piece": word_piece,
    "no decoder": no_decoder,
    "end of word": end_of_word,
    "strip words": strip_words,
}
SAMPLES = {name: TextTokenizer(make()) for name, make in MAKERS.items()}


def save_model(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """Write a model folder with just what the text side reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
