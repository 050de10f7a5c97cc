"""What every process's command line shares, so that a flag means the same everywhere."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from runtime.config import option
from runtime.errors import InvalidConfig
from runtime.logs import FORMATS, LEVELS
from runtime.metrics import PREFIX
from runtime.ports import require_free_ports
from runtime.shared_token import SharedToken
from runtime.tls import ClientTls, ServerIdentity, ServerTls


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """What every process has."""

    host: str = option("127.0.0.1", help="address to listen on")
    metrics_host: str | None = option(
        None, help="address that metrics and health listen on (default: --host)"
    )
    metrics_port: int = option(8002, help="port of metrics and health; 0 picks a free one")
    metrics_prefix: str = option(PREFIX, help="what the names of metrics begin with")
    tls_cert: Path | None = option(
        None, help="certificate chain to serve TLS with, in PEM; read again when it changes"
    )
    tls_key: Path | None = option(None, help="private key of --tls-cert, in PEM")
    tls_client_ca: Path | None = option(
        None, help="authorities that clients' certificates must come from, in PEM; none asks none"
    )
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
        _ = self.server_tls
        if self.otlp_endpoint and not re.match(r"https?://.", self.otlp_endpoint):
            raise InvalidConfig(
                "otlp_endpoint must begin with http:// or https://", param="otlp_endpoint"
            )
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", self.metrics_prefix):
            raise InvalidConfig(
                "metrics_prefix must be letters, digits and _, no digit first",
                param="metrics_prefix",
            )

    @property
    def status_host(self) -> str:
        """Where metrics and health listen."""
        return self.metrics_host or self.host

    @property
    def server_tls(self) -> ServerTls | None:
        """The files to serve TLS with. Raises InvalidConfig where one lacks another."""
        tls = ServerTls(cert=self.tls_cert, key=self.tls_key, client_ca=self.tls_client_ca)
        return None if tls.cert is None else tls

    def open_server_tls(self) -> ServerIdentity | None:
        """Read the files to serve TLS with; None without. Raises InvalidConfig naming a flag."""
        tls = self.server_tls
        return None if tls is None else tls.open()

    def require_free_ports(self) -> None:
        """Raise InvalidConfig naming the flag of a port that is taken."""
        ports = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_port")}
        shared = ports.pop("share_port", False)
        for switch, field in (("no_http", "http_port"), ("no_grpc", "grpc_port")):
            if shared or getattr(self, switch, False):
                del ports[field]
        require_free_ports(self.status_host, {"metrics_port": ports.pop("metrics_port")})
        require_free_ports(self.host, ports)


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """What front doors and workers know each other by. Without slots, to stand beside other bases.

    The file wins over the variable.
    """

    fleet_token_file: Path | None = option(
        None,
        help="token that front doors send and workers demand, one a line: the first is sent, all "
        "are accepted; read again when it changes (or a token in PENSTOCK_FLEET_TOKEN)",
    )
    fleet_token: str | None = option(
        None, help="token that front doors send and workers demand", secret=True
    )

    def open_fleet_token(self) -> SharedToken | None:
        """Return the token; None when none is configured. Raises InvalidConfig naming the flag."""
        if self.fleet_token_file is None and self.fleet_token is None:
            return None
        return SharedToken(
            file=self.fleet_token_file, value=self.fleet_token, flag="--fleet-token-file"
        )


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How a client reaches the server it talks to. Without slots, to stand beside other bases."""

    target_tls: bool = option(
        False, help="speak TLS to the target and trust the public authorities"
    )
    target_tls_ca: Path | None = option(
        None, help="speak TLS to the target and trust these authorities, in PEM"
    )
    target_tls_cert: Path | None = option(None, help="certificate to show the target, in PEM")
    target_tls_key: Path | None = option(None, help="private key of --target-tls-cert, in PEM")
    target_tls_server_name: str | None = option(
        None, help="name that the target's certificate must have (default: the target's host)"
    )

    @property
    def target_client_tls(self) -> ClientTls | None:
        """What to give RpcChannel. Raises InvalidConfig where one file lacks another."""
        tls = ClientTls(
            ca=self.target_tls_ca,
            cert=self.target_tls_cert,
            key=self.target_tls_key,
            server_name=self.target_tls_server_name,
            flags="target-tls",
        )
        return tls if self.target_tls or tls != ClientTls(flags="target-tls") else None
