"""The worker's settings: flags of `penstock worker`, read by runtime/config.py."""

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.config import argument, option
from runtime.discovery_open import KINDS
from runtime.errors import InvalidConfig
from runtime.options import FleetOptions, ProcessOptions
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

ENGINES = ("vllm", "sim")
_LEAST = {
    "canary_interval_s": 0,
    "sim_speedup": 0,
    "sim_mean_answer_tokens": 0,
    "sim_block_size": 1,
    "sim_kv_blocks": 1,
    "sim_max_num_seqs": 1,
    "sim_max_num_batched_tokens": 1,
    "sim_die_after_steps": 0,
    "sim_hang_after_steps": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(FleetOptions, ProcessOptions):
    """One worker process. vLLM's own engine arguments stand behind `--` and are no part of it."""

    model: str = argument(help="folder, GGUF file, Hugging Face id, or smollm2", metavar="MODEL")
    engine: str = option("vllm", help="what generates the tokens", choices=ENGINES)
    model_name: str | None = option(None, help="name to serve the model as (default: its own)")
    model_alias: tuple[str, ...] = option((), help="further name of the model; may be repeated")
    cache_dir: Path | None = option(None, help="where prepared models are kept")
    grpc_port: int = option(8001, help="gRPC port; 0 picks a free one")
    advertise_host: str | None = option(
        None, help="host that front doors reach this worker by (default: --host, or this host's)"
    )
    discovery: str = option("file", help="where the worker registers itself", choices=KINDS)
    discovery_path: str | None = option(None, help="folder of file discovery (default: the user's)")
    probe_interval_s: float = option(5.0, help="time between two probes of the engine", unit="s")
    probe_timeout_s: float = option(
        30.0, help="time after which a silent engine is taken for dead", unit="s"
    )
    canary_interval_s: float = option(
        10.0, help="idle time after which the engine is asked for one token; 0 is never", unit="s"
    )
    canary_timeout_s: float = option(30.0, help="time for that token to come", unit="s")
    canary_tokens: str = option("1", help="token ids of that request's prompt, joined by commas")
    stall_timeout_s: float = option(
        120.0,
        help="time without a step while requests run after which the engine is taken for hung; "
        "0 is never",
        unit="s",
    )
    sim_speedup: float = option(
        1.0, help="simulator: how many times faster than real time; 0 is no delay"
    )
    sim_mean_answer_tokens: int = option(
        0, help="simulator: mean length of answers; 0 goes on to max_tokens", unit="tokens"
    )
    sim_context_length: int | None = option(
        None, help="simulator: context length (default: the model's)", unit="tokens"
    )
    sim_block_size: int = option(32, help="simulator: size of a KV block", unit="tokens")
    sim_kv_blocks: int = option(4096, help="simulator: size of the KV cache", unit="blocks")
    sim_max_num_seqs: int = option(256, help="simulator: most sequences in a step")
    sim_max_num_batched_tokens: int = option(
        8192, help="simulator: most tokens in a step", unit="tokens"
    )
    sim_die_after_steps: int = option(0, help="simulator: step to die in; 0 is never")
    sim_hang_after_steps: int = option(0, help="simulator: step to hang in; 0 is never")

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        ProcessOptions.__post_init__(self)
        for name in ("probe_interval_s", "probe_timeout_s", "canary_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0", param=name)
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", self.canary_tokens):
            raise InvalidConfig(
                "canary_tokens must be token ids joined by commas", param="canary_tokens"
            )
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise InvalidConfig(f"{name} must be at least {least}", param=name)
        if self.sim_context_length is not None and self.sim_context_length < 2:
            raise InvalidConfig("sim_context_length must be at least 2", param="sim_context_length")

    @property
    def canary_prompt(self) -> tuple[int, ...]:
        """The canary's prompt."""
        return tuple(int(token) for token in self.canary_tokens.split(","))

    @property
    def sim(self) -> SimConfig:
        """The simulator's settings, before it takes on the model's sizes."""
        context = self.sim_context_length or SimConfig().context_length
        return SimConfig(
            context_length=context,
            mean_answer_tokens=self.sim_mean_answer_tokens,
            block_size=self.sim_block_size,
            kv_blocks=max(self.sim_kv_blocks, -(-context // self.sim_block_size)),
            max_num_seqs=self.sim_max_num_seqs,
            max_num_batched_tokens=self.sim_max_num_batched_tokens,
            die_after_steps=self.sim_die_after_steps,
            hang_after_steps=self.sim_hang_after_steps,
            timing=SimTiming(speedup=self.sim_speedup),
        )
