"""Where processes find each other: the options of everything that registers or looks."""

from dataclasses import dataclass
from pathlib import Path

from runtime.config import option
from runtime.config_option import Form
from runtime.errors import InvalidConfig
from runtime.tls import ClientTls

KINDS = ("memory", "file", "etcd")
_HOST_PORT = r"(\[[0-9a-fA-F:.%]+\]|[^\s:/,\[\]]+):[0-9]{1,5}"
_ENDPOINT = rf"(https?://)?{_HOST_PORT}/?"
_ENDPOINTS = Form(
    "HOST:PORT, with http:// or https:// before it if you like; several with commas",
    rf"{_ENDPOINT}(,{_ENDPOINT})*",
)
_PREFIX = Form("a path such as /penstock", r"/[!-.0-~]+(/[!-.0-~]+)*")
_NAMESPACE = Form("at most 64 of a-z 0-9 . _ -", r"[a-z0-9._-]{1,64}")
# etcd counts leases in whole seconds, and with its default election timeout grants none below 2.
_LEAST_TTL_S, _MOST_TTL_S = 2, 3600


@dataclass(frozen=True, kw_only=True)
class DiscoveryOptions:
    """Which back end, and how it is reached. Without slots, to stand beside other bases.

    The password's file wins over the variable.
    """

    discovery: str = option(
        "file", help="where workers are registered and found", group="Discovery", choices=KINDS
    )
    discovery_path: str | None = option(
        None, help="folder of file discovery (default: one of the user's)", group="Discovery"
    )
    namespace: str = option(
        "default", help="name that keeps workers and those who look for them apart from others",
        group="Discovery", form=_NAMESPACE,
    )  # fmt: skip
    etcd_endpoints: tuple[str, ...] = option(
        ("127.0.0.1:2379",),
        help="members of the etcd cluster, tried in turn; with commas, or repeated",
        group="Discovery", metavar="HOST:PORT", form=_ENDPOINTS,
    )  # fmt: skip
    etcd_prefix: str = option(
        "/penstock", help="what the keys in etcd begin with; one of its own keeps a fleet apart",
        group="Discovery", form=_PREFIX,
    )  # fmt: skip
    etcd_lease_ttl: int = option(
        10, help="time after which etcd drops the record of a process that died; the same for all "
        "of a fleet", group="Discovery", unit="s", least=_LEAST_TTL_S, most=_MOST_TTL_S,
    )  # fmt: skip
    etcd_user: str | None = option(None, help="user to log in to etcd as", group="Discovery")
    etcd_password_file: Path | None = option(
        None, help="password of --etcd-user; read again when it changes (or a password in "
        "PENSTOCK_ETCD_PASSWORD)", group="Discovery",
    )  # fmt: skip
    etcd_password: str | None = option(
        None, help="password of --etcd-user", group="Discovery", secret=True
    )
    etcd_tls_ca: Path | None = option(
        None, help="speak TLS to etcd and trust these authorities, in PEM", group="Discovery"
    )
    etcd_tls_cert: Path | None = option(
        None, help="certificate to show etcd, in PEM", group="Discovery"
    )
    etcd_tls_key: Path | None = option(
        None, help="private key of --etcd-tls-cert, in PEM", group="Discovery"
    )

    def check_discovery(self) -> None:
        """Raise InvalidConfig naming the field that is wrong or lacks another."""
        _ = self.etcd_tls
        has_password = self.etcd_password_file is not None or self.etcd_password is not None
        if self.etcd_user is not None and not has_password:
            raise InvalidConfig("needs --etcd-password-file beside it", param="etcd_user")
        if self.etcd_user is None and has_password:
            field = "etcd_password" if self.etcd_password_file is None else "etcd_password_file"
            raise InvalidConfig("needs --etcd-user beside it", param=field)

    @property
    def etcd_addresses(self) -> tuple[str, ...]:
        """The endpoints as HOST:PORT, each once."""
        plain = [one.rpartition("//")[2].rstrip("/") for one in self._endpoints()]
        return tuple(dict.fromkeys(plain))

    @property
    def etcd_tls(self) -> ClientTls | None:
        """How to speak TLS to etcd; None without. Raises InvalidConfig for what does not fit."""
        tls = ClientTls(
            ca=self.etcd_tls_ca, cert=self.etcd_tls_cert, key=self.etcd_tls_key, flags="etcd-tls"
        )
        schemes = {one.partition("://")[0] for one in self._endpoints() if "://" in one}
        wants_tls = "https" in schemes or tls != ClientTls(flags="etcd-tls")
        if wants_tls and "http" in schemes:
            raise InvalidConfig(
                "http:// goes with neither https:// nor --etcd-tls-*", param="etcd_endpoints"
            )
        return tls if wants_tls else None

    def _endpoints(self) -> list[str]:
        return [one for given in self.etcd_endpoints for one in given.split(",")]
