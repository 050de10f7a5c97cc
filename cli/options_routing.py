"""How requests find their worker, on the command line."""

from dataclasses import dataclass

from router.router import BusyThresholds
from router.settings import POLICIES, RouterSettings
from runtime.config import option
from runtime.options import DAY_S


@dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """Settings of the router. Without slots, to stand beside other bases."""

    router_policy: str = option(
        "kv", help="how a worker is chosen: by what its KV cache holds, its load, or neither",
        group="Routing", choices=POLICIES,
    )  # fmt: skip
    router_overlap_weight: float = option(
        4.0, help="what a KV block of the prompt to compute costs beside one that is in use",
        group="Routing", least=0,
    )  # fmt: skip
    router_temperature: float = option(
        0.0, help="how far from the best worker choices stray; 0 is not at all", group="Routing",
        least=0,
    )  # fmt: skip
    no_kv_events: bool = option(
        False, help="guess what KV caches hold from where requests were sent", group="Routing"
    )
    router_ttl_s: float = option(
        120.0, help="how long such a guess holds", group="Routing", unit="s", above=0, most=DAY_S
    )
    router_max_blocks: int = option(
        2**20, help="most KV blocks to know of one worker's rank", group="Routing", least=1
    )
    router_prune_ratio: float = option(
        0.8, help="part of them that is kept when there are more", group="Routing", above=0, most=1
    )
    session_affinity_ttl_s: float = option(
        600.0, help="how long after its last request a session (sequence_id) still goes to the "
        "same worker; 0 is off", group="Routing", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    busy_decode_blocks: float | None = option(
        None, help="a worker is passed over while more than this part of its KV blocks is in use",
        group="Routing", least=0, most=1,
    )  # fmt: skip
    busy_prefill_tokens: int | None = option(
        None, help="a worker is passed over while it has more prompt tokens to compute",
        group="Routing", unit="tokens", least=0,
    )  # fmt: skip
    worker_stall_s: float = option(
        5.0, help="a worker that has requests and makes no progress is passed over after this "
        "time; 0 is never", group="Routing", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    model_linger_s: float = option(
        300.0, help="how long a model without a worker is still listed", group="Models", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip

    @property
    def routing(self) -> RouterSettings:
        """The router's own settings; the block size is the model's."""
        return RouterSettings(
            policy=self.router_policy,
            overlap_weight=self.router_overlap_weight,
            temperature=self.router_temperature,
            use_kv_events=not self.no_kv_events,
            ttl_s=self.router_ttl_s,
            max_blocks_per_worker=self.router_max_blocks,
            prune_ratio=self.router_prune_ratio,
            session_ttl_s=self.session_affinity_ttl_s,
            thresholds=BusyThresholds(
                active_decode_blocks=self.busy_decode_blocks,
                active_prefill_tokens=self.busy_prefill_tokens,
            ),
        )
