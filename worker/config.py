"""The worker's settings: flags of `penstock worker`, read by runtime/config.py."""

from dataclasses import dataclass
from pathlib import Path

from runtime.config import argument, option
from runtime.config_option import Form
from runtime.options import DAY_S, MAX_PORT, FleetOptions, ProcessOptions
from runtime.options_discovery import DiscoveryOptions
from wire.pooling import EMBED, GENERATE
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

ENGINES = ("vllm", "sim")
_TOKEN_IDS = Form("token ids joined by commas", r"\d{1,9}(,\d{1,9})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(DiscoveryOptions, FleetOptions, ProcessOptions):
    """One worker process. vLLM's own engine arguments stand behind `--` and are no part of it."""

    model: str = argument(help="folder, GGUF file, Hugging Face id, or smollm2", metavar="MODEL")
    engine: str = option("vllm", help="what generates the tokens", group="Models", choices=ENGINES)
    model_name: str | None = option(
        None, help="name to serve the model as (default: its own)", group="Models"
    )
    model_alias: tuple[str, ...] = option(
        (), help="further name of the model; may be repeated", group="Models"
    )
    tool_call_parser: str = option(
        "auto", help="how the model writes tool calls: a parser's name, none, or auto: what its "
        "chat template shows", group="Models",
    )  # fmt: skip
    reasoning_parser: str = option(
        "auto", help="how the model marks what it thinks: a parser's name, none, or auto",
        group="Models",
    )  # fmt: skip
    lora_module: tuple[str, ...] = option(
        (), help="LoRA adapter that requests may ask for, as NAME=FOLDER; may be repeated",
        group="Models",
    )  # fmt: skip
    cache_dir: Path | None = option(None, help="where prepared models are kept", group="Models")
    grpc_port: int = option(
        8001, help="gRPC port; 0 picks a free one", group="Listening", least=0, most=MAX_PORT
    )
    advertise_host: str | None = option(
        None, help="host that front doors reach this worker by (default: --host, or this host's)",
        group="Discovery",
    )  # fmt: skip
    no_kv_events: bool = option(
        False, help="do not tell front doors what the KV cache holds", group="Routing"
    )
    probe_interval_s: float = option(
        5.0, help="time between two probes of the engine", group="Life cycle", unit="s",
        above=0, most=DAY_S,
    )  # fmt: skip
    probe_timeout_s: float = option(
        30.0, help="time after which a silent engine is taken for dead", group="Life cycle",
        unit="s", above=0, most=DAY_S,
    )  # fmt: skip
    canary_interval_s: float = option(
        10.0, help="idle time after which the engine is asked for one token; 0 is never",
        group="Life cycle", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    canary_timeout_s: float = option(
        30.0, help="time for that token to come", group="Life cycle", unit="s",
        above=0, most=DAY_S,
    )  # fmt: skip
    canary_tokens: str = option(
        "1", help="token ids of that request's prompt, joined by commas", group="Life cycle",
        form=_TOKEN_IDS,
    )  # fmt: skip
    stall_timeout_s: float = option(
        120.0, help="time without a step while requests run after which the engine is taken for "
        "hung; 0 is never", group="Life cycle", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    sim_speedup: float = option(
        1.0, help="how many times faster than real time; 0 is no delay", group="Simulator", least=0
    )
    sim_mean_answer_tokens: int = option(
        0, help="mean length of answers; 0 goes on to max_tokens", group="Simulator", unit="tokens",
        least=0,
    )  # fmt: skip
    sim_context_length: int | None = option(
        None, help="context length (default: the model's)", group="Simulator", unit="tokens",
        least=2,
    )  # fmt: skip
    sim_block_size: int = option(
        32, help="size of a KV block", group="Simulator", unit="tokens", least=1
    )
    sim_kv_blocks: int = option(
        4096, help="size of the KV cache", group="Simulator", unit="blocks", least=1
    )
    sim_max_num_seqs: int = option(256, help="most sequences in a step", group="Simulator", least=1)
    sim_max_num_batched_tokens: int = option(
        8192, help="most tokens in a step", group="Simulator", unit="tokens", least=1
    )
    sim_task: str = option(
        GENERATE, help="what the model is served for", group="Simulator", choices=(GENERATE, EMBED)
    )
    sim_die_after_steps: int = option(
        0, help="step to die in; 0 is never", group="Simulator", least=0
    )
    sim_hang_after_steps: int = option(
        0, help="step to hang in; 0 is never", group="Simulator", least=0
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        ProcessOptions.__post_init__(self)
        self.check_discovery()

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
            task=self.sim_task,
            die_after_steps=self.sim_die_after_steps,
            hang_after_steps=self.sim_hang_after_steps,
            timing=SimTiming(speedup=self.sim_speedup),
        )
