"""What the front processes' command lines share, so that a flag means the same everywhere."""

from dataclasses import dataclass, fields
from pathlib import Path

from router.policies import POLICIES
from runtime.config import option
from runtime.discovery_open import KINDS
from runtime.errors import InvalidConfig
from runtime.logs import FORMATS, LEVELS
from runtime.ports import require_free_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """What every process has."""

    host: str = option("127.0.0.1", help="address to listen on")
    metrics_port: int = option(8002, help="port of metrics and health; 0 picks a free one")
    ready_file: Path | None = option(None, help="file to write the addresses to once ready")
    log_level: str = option("info", help="least level of log lines", choices=LEVELS)
    log_format: str = option("text", help="form of log lines", choices=FORMATS)
    drain_timeout_s: float = option(30.0, help="time for running requests on stop", unit="s")

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming a field that is out of its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_port") and not 0 <= value < 65536:
                raise InvalidConfig(f"{field.name} must be in [0, 65535]", param=field.name)
            if field.name.endswith("_timeout_s") and not value >= 0:
                raise InvalidConfig(f"{field.name} must be at least 0", param=field.name)

    def require_free_ports(self) -> None:
        """Raise InvalidConfig naming the flag of a port that is taken."""
        ports = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_port")}
        for switch, field in (("no_http", "http_port"), ("no_grpc", "grpc_port")):
            if getattr(self, switch, False):
                del ports[field]
        require_free_ports(self.host, ports)


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
