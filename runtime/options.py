"""What every process's command line shares, so that a flag means the same everywhere."""

from dataclasses import dataclass, fields
from pathlib import Path

from runtime.config import option
from runtime.config_option import Form, flag_of
from runtime.errors import InvalidConfig
from runtime.grpc_options import GRPCIO, NATIVE
from runtime.logs import FORMATS, LEVELS
from runtime.metrics import PREFIX
from runtime.ports import require_free_port
from runtime.shared_token import SharedToken
from runtime.tls import ClientTls, ServerIdentity, ServerTls

MAX_PORT = 65535
_HTTP_URL = Form("an address with http:// or https://", r"https?://\S+")
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
    tls_cert: Path | None = option(
        None, help="certificate chain to serve TLS with, in PEM; read again when it changes",
        group="Security",
    )  # fmt: skip
    tls_key: Path | None = option(None, help="private key of --tls-cert, in PEM", group="Security")
    tls_client_ca: Path | None = option(
        None, help="authorities that clients' certificates must come from, in PEM; none asks none",
        group="Security",
    )  # fmt: skip
    ready_file: Path | None = option(
        None, help="file to write the addresses to once ready", group="Life cycle"
    )
    log_level: str = option(
        "info", help="least level of log lines", group="Logging", choices=LEVELS
    )
    log_format: str = option("text", help="form of log lines", group="Logging", choices=FORMATS)
    otlp_endpoint: str | None = option(
        None, help="OpenTelemetry collector to send traces to over gRPC; none is off",
        group="Telemetry", metavar="URL", form=_HTTP_URL,
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
        _ = self.server_tls

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
        """Raise InvalidConfig naming the flag of a port that is taken, or of a foreign host."""
        places = self._places()
        if getattr(self, "share_port", False):
            places = {"metrics_port": places["metrics_port"]}
        for field, (host, port) in places.items():
            of_metrics = self.metrics_host and field == "metrics_port"
            host_field = "metrics_host" if of_metrics else "host"
            require_free_port(host, port, port_field=field, host_field=host_field)

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
            if f.name.endswith("_port") and f.name not in {*off, "share_port"}
        }


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """What front doors and workers know each other by, and how they speak gRPC.

    Without slots, to stand beside other bases.

    The file wins over the variable.
    """

    fleet_token_file: Path | None = option(
        None,
        help="token that front doors send and workers demand, one a line: the first is sent, all "
        "are accepted; read again when it changes (or a token in PENSTOCK_FLEET_TOKEN)",
        group="Security",
    )
    fleet_token: str | None = option(
        None, help="token that front doors send and workers demand", group="Security", secret=True
    )

    grpc_transport: str = option(
        NATIVE,
        help="what carries gRPC: this server's own transport, or grpcio",
        group="Listening",
        choices=(NATIVE, GRPCIO),
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
        False, help="speak TLS to the target and trust the public authorities", group="Security"
    )
    target_tls_ca: Path | None = option(
        None, help="speak TLS to the target and trust these authorities, in PEM", group="Security"
    )
    target_tls_cert: Path | None = option(
        None, help="certificate to show the target, in PEM", group="Security"
    )
    target_tls_key: Path | None = option(
        None, help="private key of --target-tls-cert, in PEM", group="Security"
    )
    target_tls_server_name: str | None = option(
        None,
        help="name that the target's certificate must have (default: the target's host)",
        group="Security",
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
