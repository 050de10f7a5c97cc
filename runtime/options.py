"""What every process's command line shares, so that a flag means the same everywhere."""

from dataclasses import dataclass, fields
from pathlib import Path

from runtime.config import option
from runtime.config_option import Form, flag_of
from runtime.errors import InvalidConfig
from runtime.logs import FORMATS, LEVELS
from runtime.metrics import PREFIX
from runtime.ports import require_free_ports

MAX_PORT = 65535
_METRIC_NAME = Form("letters, digits and _, no digit first", "[a-zA-Z_][a-zA-Z0-9_]*")
# No wait is longer, so that no timer overflows.
DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """What every process has."""

    host: str = option("127.0.0.1", help="address to listen on", group="Listening")
    metrics_host: str | None = option(
        None, help="address that metrics and health listen on (default: --host)", group="Listening"
    )
    metrics_port: int = option(
        8002, help="port of metrics and health; 0 picks a free one", group="Listening",
        least=0, most=MAX_PORT,
    )  # fmt: skip
    metrics_prefix: str = option(
        PREFIX, help="what the names of metrics begin with", group="Telemetry", form=_METRIC_NAME
    )
    ready_file: Path | None = option(
        None, help="file to write the addresses to once ready", group="Life cycle"
    )
    log_level: str = option(
        "info", help="least level of log lines", group="Logging", choices=LEVELS
    )
    log_format: str = option("text", help="form of log lines", group="Logging", choices=FORMATS)
    otlp_endpoint: str | None = option(
        None, help="OpenTelemetry collector to send traces to over gRPC; none is off",
        group="Telemetry", metavar="URL",
    )  # fmt: skip
    drain_timeout_s: float = option(
        30.0, help="time for running requests on stop", group="Life cycle", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip
    withdraw_wait_s: float = option(
        0.5, help="time for others to notice that this process stops", group="Life cycle", unit="s",
        least=0, most=DAY_S,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        used: dict[tuple[str, int], str] = {}
        for field, place in self._places().items():
            other = used.setdefault(place, field)
            if other != field and place[1]:
                raise InvalidConfig(f"{place[1]} is {flag_of(other)} already", param=field)

    @property
    def status_host(self) -> str:
        """Where metrics and health listen."""
        return self.metrics_host or self.host

    def require_free_ports(self) -> None:
        """Raise InvalidConfig naming the flag of a port that is taken, or of a foreign host."""
        for field, (host, port) in self._places().items():
            of_metrics = self.metrics_host and field == "metrics_port"
            host_field = "metrics_host" if of_metrics else "host"
            require_free_ports(host, {field: port}, host_field=host_field)

    def _places(self) -> dict[str, tuple[str, int]]:
        """Where this process listens, by the field of the port."""
        off = {
            port
            for switch, port in (("no_http", "http_port"), ("no_grpc", "grpc_port"))
            if getattr(self, switch, False)
        }
        return {
            f.name: (
                self.status_host if f.name == "metrics_port" else self.host,
                getattr(self, f.name),
            )
            for f in fields(self)
            if f.name.endswith("_port") and f.name not in off
        }
