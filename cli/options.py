"""What the front processes' command lines share."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from router.policies import POLICIES
from runtime.config import option
from runtime.discovery_open import KINDS
from runtime.errors import InvalidConfig
from runtime.options import FleetOptions, ProcessOptions
from runtime.supervisor import RestartPolicy
from server.config import FrontDoorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(ProcessOptions):
    """What every process with an HTTP front has."""

    http_port: int = option(8000, help="port of the OpenAI front; 0 picks a free one")
    max_body_bytes: int = option(16 * 1024 * 1024, help="largest HTTP request", unit="bytes")
    http_head_timeout_s: float = option(
        10.0, help="time for an HTTP request's line and headers to arrive; 0 is no limit", unit="s"
    )
    http_body_timeout_s: float = option(
        60.0, help="time for an HTTP request's body to arrive; 0 is no limit", unit="s"
    )
    api_keys_file: Path | None = option(
        None,
        help="YAML list of the keys that clients need (name, key or sha256, requests_per_minute, "
        "max_concurrency); read again when it changes. PENSTOCK_API_KEY holds further ones",
    )
    api_key: str | None = option(
        None, help="API keys that clients need, separated by commas", secret=True
    )

    @property
    def client_needs(self) -> list[str]:
        """What a client must bring along, in words."""
        given = {
            "TLS": self.tls_cert,
            "a certificate": self.tls_client_ca,
            "an API key": self.api_keys_file or self.api_key,
        }
        return [name for name, value in given.items() if value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions(FleetOptions, HttpOptions):
    """What every front door has."""

    grpc_port: int = option(8001, help="port of the KServe front; 0 picks a free one")
    no_http: bool = option(False, help="do not serve the OpenAI front")
    no_grpc: bool = option(False, help="do not serve the KServe front")
    discovery: str = option("file", help="where workers are found", choices=KINDS)
    discovery_path: str | None = option(
        None, help="folder of file discovery (default: one of the user's)"
    )
    max_message_bytes: int = option(-1, help="largest gRPC message; -1 is no limit", unit="bytes")
    router_policy: str = option(
        "round-robin", help="how a worker is chosen", choices=tuple(POLICIES)
    )
    request_timeout_s: float = option(0.0, help="limit of a whole request; 0 is none", unit="s")
    first_token_timeout_s: float = option(
        600.0, help="longest wait for a worker's first token; 0 is no limit", unit="s"
    )
    token_timeout_s: float = option(
        120.0, help="longest wait for a worker's next token; 0 is no limit", unit="s"
    )
    max_in_flight: int = option(
        8192, help="most requests in flight or queued; 0 is no limit, as for those below"
    )
    worker_concurrency: int = option(
        0, help="most sequences of one model at a time, for each of its workers"
    )
    queue_limit: int = option(
        64, help="most requests of one model that wait when its workers are busy; 0 refuses all"
    )
    queue_timeout_s: float = option(
        0.0, help="longest wait for a busy model; 0 is no limit", unit="s"
    )
    max_tokens_limit: int = option(0, help="most tokens that a request may ask for", unit="tokens")
    max_choices: int = option(128, help="most answers (n) that a request may ask for")
    processes: int = option(1, help="front door processes, which share the ports")
    restart_limit: int = option(
        5, help="restarts of one child process within the window before all is given up"
    )
    restart_window_s: float = option(
        600.0, help="window that restarts are counted in; 0 never gives up", unit="s"
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming a field that is out of its range."""
        HttpOptions.__post_init__(self)
        for name, least in (("processes", 1), ("restart_limit", 0), ("restart_window_s", 0)):
            if not getattr(self, name) >= least:
                raise InvalidConfig(f"{name} must be at least {least}", param=name)
        FrontDoorConfig(**self.front_door())

    def front_door(self) -> dict[str, Any]:
        """What the front door's own settings share with these."""
        shared = {field.name for field in fields(FrontDoorConfig)} & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in shared}

    @property
    def restart_policy(self) -> RestartPolicy:
        """When a child process is started again."""
        return RestartPolicy(
            restart_limit=self.restart_limit, restart_window_s=self.restart_window_s
        )
