"""Settings of the front door."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from router.policies import make_router
from router.router import Router
from router.settings import RouterSettings
from runtime.errors import InvalidConfig
from wire.cards import ModelCard

NONE = "none"
EXPLICIT = "explicit"
CONTROL_MODES = (NONE, EXPLICIT)
"""Whether models are loaded and unloaded when clients ask for it: Triton's modes of these names."""

_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoorConfig:
    """Settings of the front door's data plane; times in seconds, 0 = no limit.

    `expected_models` are known before they have a worker: who asks for one is told to come back,
    not that there is no such model. `max_in_flight` counts requests of all models,
    `worker_concurrency` sequences of one model per ready worker of it; beyond them up to
    `queue_limit` requests per model wait (None: a quarter of the sequences), at most
    `queue_timeout_s`. `max_tokens_limit` and `max_choices` bound what one request may ask for. A
    worker that has requests and makes no progress for `worker_stall_s` is passed over; a model
    without a worker is forgotten after `model_linger_s`. Only workers of `namespace` count. What is
    set at run time (busy thresholds, traces, logs) goes into `group_folder` for the others of a
    group. `model_control` is one of CONTROL_MODES. `shared_memory` lets clients pass tensors in
    system shared memory.
    """

    routing: RouterSettings = field(default_factory=RouterSettings)
    request_timeout_s: float = 0.0
    first_token_timeout_s: float = 0.0
    token_timeout_s: float = 0.0
    connect_retry_max_s: float = 2.0
    expected_models: tuple[str, ...] = ()
    max_in_flight: int = 0
    worker_concurrency: int = 0
    queue_limit: int | None = None
    queue_timeout_s: float = 0.0
    max_tokens_limit: int = 0
    max_choices: int = 128
    namespace: str = "default"
    group_folder: Path | None = None
    model_control: str = NONE
    worker_stall_s: float = 5.0
    model_linger_s: float = 300.0
    shared_memory: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        for it in fields(self):
            value = getattr(self, it.name)
            if isinstance(value, int | float) and not value >= 0:
                raise InvalidConfig(f"{it.name} must not be negative", param=it.name)

    def group_file(self, name: str) -> Path | None:
        """Where the group keeps settings of this name; None for a front door that is alone."""
        return None if self.group_folder is None else self.group_folder / f"{name}.json"

    @property
    def follows_kv_events(self) -> bool:
        """Whether the router wants to know what workers' KV caches hold."""
        return self.routing.policy == "kv" and self.routing.use_kv_events

    def make_router(self, card: ModelCard) -> Router:
        """Return a router for the workers of a model."""
        # Without a block size workers are routed by load alone: any size serves to count it.
        block_size = card.block_size or _BLOCK_SIZE
        return make_router(replace(self.routing, block_size=block_size))
