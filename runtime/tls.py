"""TLS as operators give it: files in PEM, checked when they are read, changed while we run.

Both kinds of server ask for the present files at each handshake, so that a change holds for new
connections and disturbs no open one. Knows no transport.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from runtime.errors import InvalidConfig
from runtime.reloading import Reloading


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPem:
    """A server's checked files of one moment, and the same for asyncio.

    `http2_context` speaks HTTP/2 with its client, by ALPN; `context` leaves that open.
    """

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    context: ssl.SSLContext
    http2_context: ssl.SSLContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPem:
    """A client's checked files of one moment; without `ca` the public authorities are trusted.

    `http2_context` holds the same for asyncio, and speaks HTTP/2, by ALPN.
    """

    ca: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)
    server_name: str | None
    http2_context: ssl.SSLContext


ServerIdentity: TypeAlias = Reloading[ServerPem]
ClientIdentity: TypeAlias = Reloading[ClientPem]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """A server's certificate chain and key. With `client_ca` it demands certificates of clients.

    `flags` is what the names of these options begin with. Raises InvalidConfig naming an option.
    """

    cert: Path | None
    key: Path | None
    client_ca: Path | None = None
    flags: str = "tls"

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        for have, lack in (("cert", "key"), ("key", "cert"), ("client_ca", "cert")):
            if getattr(self, have) is not None and getattr(self, lack) is None:
                _refuse(self.flags, have, f"needs {_flag(self.flags, lack)} beside it")

    def open(self) -> ServerIdentity:
        """Read the files; raises InvalidConfig naming the flag and the file that is wrong."""
        return Reloading(_given(self.cert, self.key, self.client_ca), self._read)

    def _read(self) -> ServerPem:
        assert self.cert is not None
        assert self.key is not None
        client_ca = None
        contexts = []
        for _ in range(2):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            cert, key = _read_pair(context, self.flags, self.cert, self.key)
            if self.client_ca is not None:
                client_ca = _read_certificates(context, self.flags, "client_ca", self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            contexts.append(context)
        contexts[1].set_alpn_protocols(["h2"])
        return ServerPem(
            cert=cert,
            key=key,
            client_ca=client_ca,
            context=contexts[0],
            http2_context=contexts[1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Whom a client trusts and, for mutual TLS, who it is. All None: the public authorities.

    `server_name` is the name that the server's certificate must have, by default the address's
    host. `flags` as in ServerTls. Raises InvalidConfig naming an option.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    flags: str = "target-tls"

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        for have, lack in (("cert", "key"), ("key", "cert")):
            if getattr(self, have) is not None and getattr(self, lack) is None:
                _refuse(self.flags, have, f"needs {_flag(self.flags, lack)} beside it")

    def open(self) -> ClientIdentity:
        """Read the files; raises InvalidConfig naming the flag and the file that is wrong."""
        return Reloading(_given(self.ca, self.cert, self.key), self._read)

    def _read(self) -> ClientPem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca = cert = key = None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self.ca is not None:
            ca = _read_certificates(context, self.flags, "ca", self.ca)
        else:
            context.load_default_certs()
        if self.cert is not None and self.key is not None:
            cert, key = _read_pair(context, self.flags, self.cert, self.key)
        return ClientPem(
            ca=ca, cert=cert, key=key, server_name=self.server_name, http2_context=context
        )


class RotatingContext(ssl.SSLContext):
    """For asyncio's servers: each connection gets the context of the files as they are now.

    A new context, not a changed one: authorities can only be added to a context, and its session
    tickets would let clients of a former authority back in.
    """

    _identity: ServerIdentity

    _http2: bool

    def __new__(cls, identity: ServerIdentity, *, http2: bool = False) -> "RotatingContext":
        """Make the stand-in; nothing of its own settings is used. `http2`: offer that, by ALPN."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._identity = identity
        made._http2 = http2
        return made

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection; asyncio and uvloop call it for each."""
        pem = self._identity.current
        return (pem.http2_context if self._http2 else pem.context).wrap_bio(*args, **kwargs)


def _given(*files: Path | None) -> Sequence[Path]:
    return [file for file in files if file is not None]


def _read_pair(context: ssl.SSLContext, flags: str, cert: Path, key: Path) -> tuple[bytes, bytes]:
    chain = _read_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), flags, "cert", cert)
    secret = _read(flags, "key", key)

    def password() -> NoReturn:
        _refuse(flags, "key", "is encrypted; it must be readable without a password", key)

    try:
        context.load_cert_chain(cert, key, password=password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse(flags, "key", f"does not belong to the certificate in {cert}", key)
        _refuse(flags, "key", "holds no private key in PEM", key)
    except OSError as error:  # gone since it was read
        _refuse(flags, "key", f"{error.strerror}", key)
    return chain, secret


def _read_certificates(context: ssl.SSLContext, flags: str, field_: str, file: Path) -> bytes:
    """Return a file's text once its certificates are in `context`'s store."""
    data = _read(flags, field_, file)
    try:
        context.load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        _refuse(flags, field_, "holds no certificate in PEM", file)
    return data


def _read(flags: str, field_: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        _refuse(flags, field_, f"{error.strerror}", file)


def _flag(flags: str, field_: str) -> str:
    return f"--{flags}-{field_.replace('_', '-')}"


def _refuse(flags: str, field_: str, what: str, file: Path | None = None) -> NoReturn:
    where = _flag(flags, field_) if file is None else f"{_flag(flags, field_)} {file}:"
    raise InvalidConfig(f"{where} {what}", param=f"{flags}_{field_}".replace("-", "_"))
