"""What the front processes' command lines share."""

from dataclasses import dataclass, fields
from typing import Any

from router.policies import POLICIES
from runtime.config import option
from runtime.discovery_open import KINDS
from runtime.options import ProcessOptions
from server.config import FrontDoorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(ProcessOptions):
    """What every process with an HTTP front has."""

    http_port: int = option(8000, help="port of the OpenAI front; 0 picks a free one")
    max_body_bytes: int = option(16 * 1024 * 1024, help="largest HTTP request", unit="bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions(HttpOptions):
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
    queue_limit: int | None = option(
        None,
        help="most requests of one model that wait when its workers are busy; 0 refuses all "
        "(default: a quarter of --worker-concurrency of all workers)",
    )
    queue_timeout_s: float = option(
        0.0, help="longest wait for a busy model; 0 is no limit", unit="s"
    )
    max_tokens_limit: int = option(0, help="most tokens that a request may ask for", unit="tokens")
    max_choices: int = option(128, help="most answers (n) that a request may ask for")

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming a field that is out of its range."""
        HttpOptions.__post_init__(self)
        FrontDoorConfig(**self.front_door())

    def front_door(self) -> dict[str, Any]:
        """What the front door's own settings share with these."""
        shared = {field.name for field in fields(FrontDoorConfig)} & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in shared}
