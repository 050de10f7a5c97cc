"""Writes LoRA adapters in PEFT's format: random ones that change what a model says."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_adapter(folder: Path, model: Path, *, seed: int, rank: int = 8) -> Path:
    """Write an adapter of a Llama-like model's q_proj and v_proj; returns its folder."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = {"q_proj": hidden, "v_proj": hidden // heads * config["num_key_value_heads"]}
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("A", (rank, hidden)), ("B", (size, rank))):
                values = random.normal(0, 0.05, shape).astype(np.float32)
                weights[f"{place}.lora_{part}.weight"] = values
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(sizes),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
