"""LoRA adapters in vLLM: the engine's settings for them, and loading them at its start.

An adapter is loaded before any request names it: a path that vLLM cannot read ends the whole
engine when a request brings it, and only raises when it is loaded by itself.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from runtime.errors import EngineFailed, InvalidConfig
from worker.adapters import SETTINGS, WEIGHTS, Adapter

NO_ADAPTER = "penstock-no-adapter"
"""Name of an adapter that changes nothing, for requests without one.

On a CPU vLLM 0.32 gives rows without an adapter the last one's output when a batch has both.
"""
# More different adapters in one batch cost memory for each, whether they are used or not.
_MOST_AT_ONCE = 8


def engine_adapters(
    adapters: Sequence[Adapter], folder: Path, *, on_cpu: bool
) -> tuple[Adapter, ...]:
    """Return the adapters that the engine has to hold; what has to be written goes to `folder`."""
    if not (adapters and on_cpu):
        return tuple(adapters)
    smallest = min(adapters, key=lambda it: (it.path / WEIGHTS).stat().st_size)
    neutral = Adapter(name=NO_ADAPTER, path=folder / NO_ADAPTER, rank=smallest.rank)
    try:
        _write_neutral(smallest.path, neutral.path)
    except Exception as error:
        raise InvalidConfig(
            f"--lora-module: {smallest.path / WEIGHTS} cannot be read: {error}", param="lora_module"
        ) from error
    return (*adapters, neutral)


def _write_neutral(like: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    shutil.copyfile(like / SETTINGS, folder / SETTINGS)
    weights = load_file(like / WEIGHTS)
    save_file({name: torch.zeros_like(it) for name, it in weights.items()}, folder / WEIGHTS)


def lora_defaults(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Return vLLM's arguments that make room for the adapters; none for none."""
    if not adapters:
        return {}
    from vllm.config.lora import MaxLoRARanks

    ranks = sorted(get_args(MaxLoRARanks))
    largest = max(it.rank for it in adapters)
    fitting = [it for it in ranks if it >= largest]
    if not fitting:
        raise InvalidConfig(
            f"--lora-module: a rank of {largest} is above vLLM's limit of {ranks[-1]}",
            param="lora_module",
        )
    return {
        "enable_lora": True,
        "max_lora_rank": fitting[0],
        "max_loras": min(len(adapters), _MOST_AT_ONCE),
        "max_cpu_loras": len(adapters),
    }


def check_lora_arguments(args: Any, adapters: Sequence[Adapter]) -> None:
    """Raise InvalidConfig when what the user has set leaves no room for the adapters.

    All of them stay in memory: one that had to go would be read from its folder again, which may
    have changed or gone by then.
    """
    if not adapters:
        return
    if not args.enable_lora:
        raise InvalidConfig("--no-enable-lora contradicts --lora-module", param="engine_args")
    if args.max_cpu_loras is not None and args.max_cpu_loras < len(adapters):
        raise InvalidConfig(
            f"--max-cpu-loras {args.max_cpu_loras} is less than the {len(adapters)} adapters that "
            "the engine has to hold",
            param="engine_args",
        )


async def load_adapters(llm: Any, adapters: Sequence[Adapter]) -> Mapping[str, Any]:
    """Load all of them into AsyncLLM; returns vLLM's LoRARequest of each name.

    Raises EngineFailed naming the one that vLLM refuses.
    """
    from vllm.lora.request import LoRARequest

    found: dict[str, Any] = {}
    for number, adapter in enumerate(adapters, 1):
        request = LoRARequest(adapter.name, number, str(adapter.path))
        try:
            await llm.add_lora(request)
        except Exception as error:
            raise EngineFailed(f"the adapter {adapter.name!r} cannot be loaded: {error}") from error
        found[adapter.name] = request
    return found
