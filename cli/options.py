"""What the front processes' command lines share."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cli.options_grpc import GrpcServerOptions
from cli.options_routing import RoutingOptions
from runtime.config import option
from runtime.errors import InvalidConfig
from runtime.options import DAY_S, MAX_PORT, FleetOptions, ProcessOptions
from runtime.options_discovery import DiscoveryOptions
from runtime.supervisor import RestartPolicy
from server.config import CONTROL_MODES, NONE, FrontDoorConfig

_PATHS = {
    "chat_path": "/v1/chat/completions",
    "completions_path": "/v1/completions",
    "embeddings_path": "/v1/embeddings",
    "responses_path": "/v1/responses",
    "models_path": "/v1/models",
    "health_path": "/health",
    "live_path": "/live",
}
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
    http_head_timeout_s: float = option(
        10.0, help="time for an HTTP request's line and headers to arrive; 0 is no limit",
        group="Limits", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    http_body_timeout_s: float = option(
        60.0, help="time for an HTTP request's body to arrive; 0 is no limit", group="Limits",
        unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    sse_keep_alive_s: float = option(
        15.0, help="silence on a stream of server-sent events after which a comment is sent; 0 is "
        "never", group="Listening", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    cors_origin: tuple[str, ...] = option(
        (), help="origin of web pages that may ask, such as https://chat.example, or * for any; "
        "may be repeated", group="Security",
    )  # fmt: skip
    unknown_fields: str = option(
        "ignore", help="what to do with names in OpenAI bodies that are not known",
        group="Limits", choices=("ignore", "refuse"),
    )  # fmt: skip
    response_store_items: int = option(
        10_000, help="most responses (/v1/responses) that are stored, in this process; 0 is none",
        group="Limits", least=0,
    )  # fmt: skip
    response_store_bytes: int = option(
        256 * 1024 * 1024, help="most memory for them", group="Limits", unit="bytes", least=0
    )
    response_store_ttl_s: float = option(
        3600.0, help="time that they are stored for", group="Limits", unit="s", above=0,
        most=30 * DAY_S,
    )  # fmt: skip
    chat_path: str | None = option(
        None, help="further path of /v1/chat/completions", group="Listening"
    )
    completions_path: str | None = option(
        None, help="further path of /v1/completions", group="Listening"
    )
    embeddings_path: str | None = option(
        None, help="further path of /v1/embeddings", group="Listening"
    )
    responses_path: str | None = option(
        None, help="further path of /v1/responses", group="Listening"
    )
    models_path: str | None = option(None, help="further path of /v1/models", group="Listening")
    health_path: str | None = option(None, help="further path of /health", group="Listening")
    live_path: str | None = option(None, help="further path of /live", group="Listening")
    api_keys_file: Path | None = option(
        None,
        help="YAML list of the keys that clients need (name, key or sha256, requests_per_minute, "
        "max_concurrency); read again when it changes. PENSTOCK_API_KEY holds further ones",
        group="Security",
    )
    api_key: str | None = option(
        None, help="API keys that clients need, separated by commas", group="Security", secret=True
    )

    def http_front(self) -> dict[str, Any]:
        """What the gateway's own settings share with these."""
        return {
            "max_body_bytes": self.max_body_bytes,
            "body_timeout_s": self.http_body_timeout_s,
            "keep_alive_s": self.sse_keep_alive_s,
            "cors_origins": self.cors_origin,
            "response_store_items": self.response_store_items,
            "response_store_bytes": self.response_store_bytes,
            "response_store_ttl_s": self.response_store_ttl_s,
            "refuse_unknown_fields": self.unknown_fields == "refuse",
            "paths": {
                given: path
                for name, path in _PATHS.items()
                if (given := getattr(self, name)) is not None
            },
        }

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
class FrontOptions(GrpcServerOptions, RoutingOptions, DiscoveryOptions, FleetOptions, HttpOptions):
    """What every front door has."""

    grpc_port: int = option(
        8001, help="port of the KServe front; 0 picks a free one", group="Listening",
        least=0, most=MAX_PORT,
    )  # fmt: skip
    no_http: bool = option(False, help="do not serve the OpenAI front", group="Listening")
    no_grpc: bool = option(False, help="do not serve the KServe front", group="Listening")
    max_message_bytes: int = option(
        -1, help="largest gRPC message; -1 is no limit", group="Limits", unit="bytes",
        least=-1, most=_MAX_MESSAGE_BYTES,
    )  # fmt: skip
    shared_memory: bool = option(
        False, help="let clients of this machine pass tensors in system shared memory; they can "
        "then read and write what this process's user may (one process only)", group="Security",
    )  # fmt: skip
    request_timeout_s: float = option(
        0.0, help="limit of a whole request; 0 is none", group="Limits", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip
    first_token_timeout_s: float = option(
        600.0, help="longest wait for a worker's first token; 0 is no limit", group="Limits",
        unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    token_timeout_s: float = option(
        120.0, help="longest wait for a worker's next token; 0 is no limit", group="Limits",
        unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    max_in_flight: int = option(
        8192, help="most requests in flight or queued; 0 is no limit", group="Limits", least=0
    )
    worker_concurrency: int = option(
        0, help="most sequences of one model at a time, for each of its workers; 0 is no limit",
        group="Limits", least=0,
    )  # fmt: skip
    queue_limit: int | None = option(
        None, help="most requests of one model that wait when its workers have no place; 0 is none "
        "(default: a quarter of --worker-concurrency, for each of its workers)",
        group="Limits", least=0,
    )  # fmt: skip
    queue_timeout_s: float = option(
        0.0, help="longest wait for such a place; 0 is no limit", group="Limits", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip
    max_tokens_limit: int = option(
        0, help="most tokens that a request may ask for; 0 is no limit", group="Limits",
        unit="tokens", least=0,
    )  # fmt: skip
    max_choices: int = option(
        128, help="most answers (n) that a request may ask for; 0 is no limit", group="Limits",
        least=0,
    )  # fmt: skip
    model_control: str = option(
        NONE, help="whether clients may load and unload models (RepositoryModelLoad, -Unload), "
        "which takes a model's workers in and out of service for all", group="Models",
        choices=CONTROL_MODES,
    )  # fmt: skip
    processes: int = option(
        1, help="front door processes, which share the ports", group="Listening", least=1
    )
    restart_limit: int = option(
        5, help="restarts of one child process within the window before all is given up",
        group="Life cycle", least=0,
    )  # fmt: skip
    restart_window_s: float = option(
        600.0, help="window that restarts are counted in; 0 never gives up", group="Life cycle",
        unit="s", least=0, most=DAY_S,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        HttpOptions.__post_init__(self)
        self.check_discovery()
        if self.no_http and self.no_grpc:
            raise InvalidConfig("--no-http and --no-grpc together leave nothing to serve")
        if self.shared_memory and self.processes > 1:
            raise InvalidConfig(
                "a region would be known to one process only: not with --processes above 1",
                param="shared_memory",
            )

    def front_door(self) -> dict[str, Any]:
        """What the front door's own settings share with these."""
        shared = {field.name for field in fields(FrontDoorConfig)} & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in shared} | {"routing": self.routing}

    @property
    def restart_policy(self) -> RestartPolicy:
        """When a child process is started again."""
        return RestartPolicy(
            restart_limit=self.restart_limit, restart_window_s=self.restart_window_s
        )
