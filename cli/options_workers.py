"""How a process that routes reaches its workers, on the command line."""

from dataclasses import dataclass
from pathlib import Path

from runtime.config import option
from runtime.tls import ClientTls


@dataclass(frozen=True, kw_only=True)
class WorkerTlsOptions:
    """TLS to workers. Without slots, to stand beside other bases."""

    worker_tls_ca: Path | None = option(
        None, help="speak TLS to workers and trust these authorities, in PEM", group="Security"
    )
    worker_tls_cert: Path | None = option(
        None, help="certificate to show workers, in PEM", group="Security"
    )
    worker_tls_key: Path | None = option(
        None, help="private key of --worker-tls-cert, in PEM", group="Security"
    )
    worker_tls_server_name: str | None = option(
        None,
        help="name that every worker's certificate must have (default: the host it is reached by)",
        group="Security",
    )

    @property
    def worker_client_tls(self) -> ClientTls | None:
        """How to speak TLS to workers; None without. Raises InvalidConfig for half a pair."""
        tls = ClientTls(
            ca=self.worker_tls_ca,
            cert=self.worker_tls_cert,
            key=self.worker_tls_key,
            server_name=self.worker_tls_server_name,
            flags="worker-tls",
        )
        return None if tls == ClientTls(flags="worker-tls") else tls
