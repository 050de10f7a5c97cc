"""Makes the simulated engine look like a given model, so that its tokens have a text."""

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
    first, count = _longest_plain_run(vocab_size, _special_ids(folder))
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


def _special_ids(folder: Path) -> list[int]:
    path = folder / "tokenizer.json"
    if not path.exists():
        return []
    return sorted(entry["id"] for entry in read_json(path).get("added_tokens", ()))


def _longest_plain_run(vocab_size: int, special: list[int]) -> tuple[int, int]:
    bounds = [-1, *(token for token in special if token < vocab_size), vocab_size]
    runs = [(end - start - 1, start + 1) for start, end in zip(bounds, bounds[1:], strict=False)]
    count, first = max(runs)
    return first, count
