"""What a worker tells about its model, read from the model's folder."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from runtime.errors import InvalidConfig
from wire.cards import ModelCard
from worker.engine import EngineInfo

_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def make_card(
    model_path: Path | str,
    name: str,
    info: EngineInfo,
    aliases: Sequence[str] = (),
    **parsers: str,
) -> ModelCard:
    """Return the card of the HF folder `model_path` as served by an engine.

    `parsers` are the card's names of parsers of answers. `created` is when the folder's config was
    written. Two folders have the same `checksum` when their text side is the same and their weight
    files have the same names and sizes. Raises InvalidConfig when the folder holds no readable
    config.json.
    """
    folder = Path(model_path)
    read_json(folder / "config.json")
    return ModelCard(
        name=name,
        path=str(folder),
        context_length=info.context_length,
        vocab_size=info.vocab_size,
        block_size=info.block_size,
        aliases=tuple(aliases),
        eos_token_ids=info.eos_token_ids,
        created=int((folder / "config.json").stat().st_mtime),
        checksum=_checksum(folder),
        task=info.task,
        adapters=info.adapters,
        **parsers,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the model's folder; raises InvalidConfig."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read {path}: {error}", param="model") from error
    if not isinstance(value, dict):
        raise InvalidConfig(f"{path} holds no JSON object", param="model")
    return value


def _checksum(folder: Path) -> str:
    state = sha256()
    for name in _TEXT_FILES:
        path = folder / name
        if path.exists():
            state.update(name.encode() + b"\0" + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    return state.hexdigest()
