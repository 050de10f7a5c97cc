"""Makes the simulated engine look like a given model, so that its tokens have a text."""

import itertools
from dataclasses import replace
from pathlib import Path

from worker.card import read_json
from worker.sim_engine import SimConfig

_MOST_CONTEXT_TOKENS = 131072


def sim_config_for(
    folder: Path, base: SimConfig, *, context_length: int | None = None
) -> SimConfig:
    """Return `base` with the vocabulary, end tokens and context of the HF folder `folder`.

    Answers are made of the longest run of ids without special tokens. The cache grows when it
    could not hold one context. Raises InvalidConfig when the folder cannot be read.
    """
    config = read_json(folder / "config.json")
    vocab_size = int(config["vocab_size"])
    first, count = _plain_run(folder, vocab_size)
    eos = config.get("eos_token_id")
    eos_token_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)
    context = context_length or min(
        int(config.get("max_position_embeddings", base.context_length)), _MOST_CONTEXT_TOKENS
    )
    return replace(
        base,
        vocab_size=vocab_size,
        first_token_id=first,
        plain_tokens=count,
        eos_token_ids=eos_token_ids,
        context_length=context,
        kv_blocks=max(base.kv_blocks, -(-context // base.block_size)),
    )


def _plain_run(folder: Path, vocab_size: int) -> tuple[int, int]:
    """Return (first, count) of the longest run of ids that the tokenizer knows as plain text."""
    path = folder / "tokenizer.json"
    special: list[int] = []
    if path.exists():
        tokenizer = read_json(path)
        special = sorted(entry["id"] for entry in tokenizer.get("added_tokens", ()))
        # Models pad their vocabulary with ids that have no text.
        known = len(tokenizer.get("model", {}).get("vocab", ())) + len(special)
        vocab_size = min(vocab_size, known)
    bounds = [-1, *(token for token in special if token < vocab_size), vocab_size]
    runs = [(end - start - 1, start + 1) for start, end in itertools.pairwise(bounds)]
    count, first = max(runs)
    return first, count
