"""LoRA adapters of a worker's model: folders that are checked before an engine is built."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InvalidConfig
from worker.card import read_json

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
_OPTION = "lora_module"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter in PEFT's format: the folder `path` holds its settings and weights."""

    name: str
    path: Path
    rank: int


def read_adapters(given: Sequence[str], taken: Collection[str] = ()) -> tuple[Adapter, ...]:
    """Return the adapters of `NAME=FOLDER` texts; `taken` are names of the model itself.

    Raises InvalidConfig naming what is wrong: a name twice, or a folder without an adapter.
    """
    found: dict[str, Adapter] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not (name and sign and folder):
            raise _wrong(f"expected NAME=FOLDER, got {text!r}")
        if name in taken or name in found:
            raise _wrong(f"the name {name!r} is given twice")
        path = Path(folder).expanduser().resolve()
        found[name] = Adapter(name=name, path=path, rank=_rank(name, path))
    return tuple(found.values())


def _rank(name: str, folder: Path) -> int:
    for file in (SETTINGS, WEIGHTS):
        if not (folder / file).is_file():
            raise _wrong(f"{folder} holds no adapter: there is no {file} in it")
    settings: dict[str, Any] = read_json(folder / SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise _wrong(f"{name!r} is no LoRA adapter: its peft_type is {settings.get('peft_type')!r}")
    rank = settings.get("r")
    if type(rank) is not int or rank < 1:
        raise _wrong(f"{name!r} has no rank: r is {rank!r}")
    return rank


def _wrong(what: str) -> InvalidConfig:
    return InvalidConfig(f"--lora-module: {what}", param=_OPTION)
