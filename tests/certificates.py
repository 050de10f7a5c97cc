"""Certificates of authorities made for one test, as the files that operators give."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme

from runtime.tls import ClientTls, ServerTls

_PAST = datetime(2001, 1, 1, tzinfo=UTC)


def replace(file: Path, data: bytes) -> None:
    """Put a new file in an old one's place, as certificates are rotated."""
    new = file.with_suffix(".new")
    new.write_bytes(data)
    os.replace(new, file)


@dataclass(frozen=True)
class Identity:
    """A certificate and its key on disk."""

    cert: Path
    key: Path

    def renew(self, authority: "Authority", *names: str, expired: bool = False) -> None:
        """Replace both files by new ones."""
        issued = authority.issue(*names, expired=expired)
        replace(self.key, issued.private_key_pem.bytes())
        replace(self.cert, b"".join(part.bytes() for part in issued.cert_chain_pems))


class Authority:
    """A certificate authority and what it has issued, in files of `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._made = trustme.CA(organization_name=name)
        self._folder, self._name = folder, name
        self.file = folder / f"{name}-ca.pem"
        self.file.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self._made.cert_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> trustme.LeafCert:
        return self._made.issue_cert(
            *(names or ("localhost", "127.0.0.1")), not_after=_PAST if expired else None
        )

    def identity(self, label: str, *names: str) -> Identity:
        made = Identity(
            cert=self._folder / f"{self._name}-{label}.pem",
            key=self._folder / f"{self._name}-{label}-key.pem",
        )
        made.renew(self, *names)
        return made

    def server(self, *, client_ca: Path | None = None) -> tuple[ServerTls, Identity]:
        """A server's settings, and the files behind them."""
        made = self.identity("server")
        return ServerTls(cert=made.cert, key=made.key, client_ca=client_ca), made

    def client(self, *, trusting: Path | None = None) -> tuple[ClientTls, Identity]:
        """The settings of a client with a certificate, and the files behind them."""
        made = self.identity("client", "client@localhost")
        return ClientTls(ca=trusting or self.file, cert=made.cert, key=made.key), made
