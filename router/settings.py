"""Settings of a router: which policy, and what it weighs."""

import math
from dataclasses import dataclass, field

from router.router import BusyThresholds
from runtime.errors import InvalidConfig

POLICIES = ("round-robin", "random", "power-of-two", "least-loaded", "kv")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Settings of one model's router.

    `block_size` is in tokens. `overlap_weight` says what a prompt block to compute costs beside a
    block that is in use, and `temperature` how far from the cheapest place choices stray, 0 not at
    all (router/cost.py). Without `use_kv_events` a place is believed to hold, for `ttl_s` seconds,
    what was sent there. At most `max_blocks_per_worker` blocks are known of each rank of a worker;
    beyond, the oldest are forgotten down to `prune_ratio` of it. A session stays where it is until
    it was idle for `session_ttl_s`, 0 for not at all. `seed` makes choices repeatable.
    """

    policy: str = "kv"
    block_size: int = 16
    overlap_weight: float = 4.0
    temperature: float = 0.0
    use_kv_events: bool = True
    ttl_s: float = 120.0
    max_blocks_per_worker: int = 2**20
    prune_ratio: float = 0.8
    session_ttl_s: float = 600.0
    thresholds: BusyThresholds = field(default_factory=BusyThresholds)
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        _check(self.policy in POLICIES, "policy", f"must be one of {', '.join(POLICIES)}")
        _check(self.block_size >= 1, "block_size", "must be at least 1 token")
        for name in ("overlap_weight", "temperature"):
            value = getattr(self, name)
            _check(math.isfinite(value) and value >= 0, name, "must be 0 or more")
        _check(math.isfinite(self.ttl_s) and self.ttl_s > 0, "ttl_s", "must be above 0 s")
        idle = self.session_ttl_s
        _check(math.isfinite(idle) and idle >= 0, "session_ttl_s", "must be 0 s or more")
        most = self.max_blocks_per_worker
        _check(most >= 1, "max_blocks_per_worker", "must be at least 1 block")
        _check(0 < self.prune_ratio <= 1, "prune_ratio", "must be above 0, at most 1")
        decode = self.thresholds.active_decode_blocks
        _check(decode is None or 0 <= decode <= 1, "active_decode_blocks", "must be from 0 to 1")
        prefill = self.thresholds.active_prefill_tokens
        _check(prefill is None or prefill >= 0, "active_prefill_tokens", "must be 0 or more")


def _check(fine: bool, name: str, rule: str) -> None:
    if not fine:
        raise InvalidConfig(f"{name} {rule}", param=name)
