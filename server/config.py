"""Settings of the front door."""

from dataclasses import dataclass

from router.policies import POLICIES
from runtime.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoorConfig:
    """Settings of the front door's data plane; times in seconds, 0 = no limit.

    `expected_models` are known before they have a worker: who asks for one is told to come back,
    not that there is no such model.
    """

    router_policy: str = "round-robin"
    request_timeout_s: float = 0.0
    connect_retry_max_s: float = 2.0
    expected_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        if self.router_policy not in POLICIES:
            raise InvalidConfig(
                f"router_policy must be one of {', '.join(POLICIES)}, got {self.router_policy!r}",
                param="router_policy",
            )
        for name in ("request_timeout_s", "connect_retry_max_s"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} must not be negative", param=name)
