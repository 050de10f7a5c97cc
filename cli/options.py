"""What the front processes' command lines share."""

from dataclasses import dataclass

from router.policies import POLICIES
from runtime.config import option
from runtime.discovery_open import KINDS
from runtime.errors import InvalidConfig
from runtime.options import DAY_S, MAX_PORT, ProcessOptions

# What a message size is in gRPC: a signed 32-bit number.
_MAX_MESSAGE_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(ProcessOptions):
    """What every process with an HTTP front has."""

    http_port: int = option(
        8000, help="port of the OpenAI front; 0 picks a free one", group="Listening",
        least=0, most=MAX_PORT,
    )  # fmt: skip
    max_body_bytes: int = option(
        16 * 1024 * 1024, help="largest HTTP request", group="Limits", unit="bytes", least=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions(HttpOptions):
    """What every front door has."""

    grpc_port: int = option(
        8001, help="port of the KServe front; 0 picks a free one", group="Listening",
        least=0, most=MAX_PORT,
    )  # fmt: skip
    no_http: bool = option(False, help="do not serve the OpenAI front", group="Listening")
    no_grpc: bool = option(False, help="do not serve the KServe front", group="Listening")
    discovery: str = option(
        "file", help="where workers are found", group="Discovery", choices=KINDS
    )
    discovery_path: str | None = option(
        None, help="folder of file discovery (default: one of the user's)", group="Discovery"
    )
    max_message_bytes: int = option(
        -1, help="largest gRPC message; -1 is no limit", group="Limits", unit="bytes",
        least=-1, most=_MAX_MESSAGE_BYTES,
    )  # fmt: skip
    router_policy: str = option(
        "round-robin", help="how a worker is chosen", group="Routing", choices=tuple(POLICIES)
    )
    request_timeout_s: float = option(
        0.0, help="limit of a whole request; 0 is none", group="Limits", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        HttpOptions.__post_init__(self)
        if self.no_http and self.no_grpc:
            raise InvalidConfig("--no-http and --no-grpc together leave nothing to serve")
