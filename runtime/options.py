"""What every process's command line shares, so that a flag means the same everywhere."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from runtime.config import option
from runtime.errors import InvalidConfig
from runtime.logs import FORMATS, LEVELS
from runtime.metrics import PREFIX
from runtime.ports import require_free_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """What every process has."""

    host: str = option("127.0.0.1", help="address to listen on")
    metrics_host: str | None = option(
        None, help="address that metrics and health listen on (default: --host)"
    )
    metrics_port: int = option(8002, help="port of metrics and health; 0 picks a free one")
    metrics_prefix: str = option(PREFIX, help="what the names of metrics begin with")
    ready_file: Path | None = option(None, help="file to write the addresses to once ready")
    log_level: str = option("info", help="least level of log lines", choices=LEVELS)
    log_format: str = option("text", help="form of log lines", choices=FORMATS)
    otlp_endpoint: str | None = option(
        None, help="OpenTelemetry collector to send traces to over gRPC; none is off", metavar="URL"
    )
    drain_timeout_s: float = option(30.0, help="time for running requests on stop", unit="s")
    withdraw_wait_s: float = option(
        0.5, help="time for others to notice that this process stops", unit="s"
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming a field that is out of its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_port") and not 0 <= value < 65536:
                raise InvalidConfig(f"{field.name} must be in [0, 65535]", param=field.name)
            if field.name.endswith(("_timeout_s", "_wait_s")) and not value >= 0:
                raise InvalidConfig(f"{field.name} must be at least 0", param=field.name)
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", self.metrics_prefix):
            raise InvalidConfig(
                "metrics_prefix must be letters, digits and _, no digit first",
                param="metrics_prefix",
            )

    @property
    def status_host(self) -> str:
        """Where metrics and health listen."""
        return self.metrics_host or self.host

    def require_free_ports(self) -> None:
        """Raise InvalidConfig naming the flag of a port that is taken."""
        ports = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_port")}
        shared = ports.pop("share_port", False)
        for switch, field in (("no_http", "http_port"), ("no_grpc", "grpc_port")):
            if shared or getattr(self, switch, False):
                del ports[field]
        require_free_ports(self.status_host, {"metrics_port": ports.pop("metrics_port")})
        require_free_ports(self.host, ports)
