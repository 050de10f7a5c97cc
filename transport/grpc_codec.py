"""What gRPC puts into HTTP/2: prefixed messages, headers and trailers.

Source: grpc/doc/PROTOCOL-HTTP2.md and compression.md.
"""

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from runtime.errors import (
    Code,
    InternalError,
    InvalidRequest,
    RequestTooLarge,
    Unsupported,
)
from transport.header_blocks import Headers, encode_headers

IDENTITY = "identity"
ACCEPTED = "identity,deflate,gzip"
_prefix = struct.Struct(">BL")
PREFIX_BYTES = _prefix.size
# wbits of zlib: a zlib stream (what gRPC calls deflate), and gzip's.
_WBITS = {"deflate": 15, "gzip": 31}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PRINTABLE = "".join(chr(it) for it in range(0x20, 0x7F) if it != ord("%"))
# Headers of the protocol itself, which are no metadata.
_RESERVED = frozenset({"te", "content-type", "content-length"})


class UnknownEncoding(Unsupported):
    """The client compresses in a way that is not offered here."""


def pack_message(data: bytes, *, compressed: bool = False) -> bytes:
    """Return a message as it stands in DATA."""
    return _prefix.pack(compressed, len(data)) + data


class Encoding(NamedTuple):
    """How messages are compressed: a name of ACCEPTED, and zlib's level."""

    name: str = IDENTITY
    level: int = 6


PLAIN = Encoding()
_LEVELS = {"low": 1, "medium": 6, "high": 9}


def compress(data: bytes, encoding: Encoding) -> bytes:
    """Return the message compressed; not for PLAIN."""
    made = zlib.compressobj(encoding.level, wbits=_WBITS[encoding.name])
    return made.compress(data) + made.flush()


class MessageReader:
    """Cuts DATA into messages, and inflates them. `limit` in bytes, -1 for none."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._encoding = encoding
        self._limit = limit
        self._parts = bytearray()

    @property
    def is_between(self) -> bool:
        """Whether no message has begun."""
        return not self._parts

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete.

        Raises RequestTooLarge for one over the limit, UnknownEncoding, and InvalidRequest for
        bytes that are no message.
        """
        if not self._parts and len(data) >= PREFIX_BYTES:
            # Nearly always: one message, whole, in one frame.
            flag, size = _prefix.unpack_from(data)
            if len(data) == PREFIX_BYTES + size and flag == 0:
                self._check_size(size)
                return [data[PREFIX_BYTES:]]
        self._parts += data
        found, at = [], 0
        while len(self._parts) - at >= PREFIX_BYTES:
            flag, size = _prefix.unpack_from(self._parts, at)
            self._check_size(size)
            stop = at + PREFIX_BYTES + size
            if stop > len(self._parts):
                break
            found.append(self._message(flag, bytes(self._parts[at + PREFIX_BYTES : stop])))
            at = stop
        del self._parts[:at]
        return found

    def _check_size(self, size: int) -> None:
        if 0 <= self._limit < size:
            raise RequestTooLarge(f"a message of {size} bytes, over {self._limit}")

    def _message(self, flag: int, data: bytes) -> bytes:
        if flag == 0:
            return data
        if flag != 1:
            raise InvalidRequest(f"a message's compressed flag is {flag}")
        if self._encoding == IDENTITY:
            raise InternalError("a message is compressed, and no grpc-encoding says how")
        if self._encoding not in _WBITS:
            raise UnknownEncoding(f"grpc-encoding {self._encoding!r} is not offered")
        return self._inflate(data)

    def _inflate(self, data: bytes) -> bytes:
        reader = zlib.decompressobj(wbits=_WBITS[self._encoding])
        most = self._limit + 1 if self._limit >= 0 else 0
        try:
            found = reader.decompress(data, most)
        except zlib.error as error:
            raise InvalidRequest(f"a compressed message: {error}") from None
        self._check_size(len(found))
        if not reader.eof:
            raise InvalidRequest("a compressed message ends too early")
        return found


def read_timeout(text: str) -> float:
    """Return grpc-timeout in seconds. Raises InvalidRequest."""
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"grpc-timeout: {text[:40]!r} is no timeout", param="grpc-timeout")
    return int(match[1]) * _UNITS_S[match[2]]


def write_timeout(seconds: float) -> str:
    """Return a grpc-timeout: at most eight digits, in the finest unit that they have room for."""
    for unit in ("u", "m", "S", "M", "H"):
        count = max(0, round(seconds / _UNITS_S[unit]))
        if count < 10**8:
            return f"{count}{unit}"
    return "99999999H"


def read_metadata(headers: Headers) -> list[tuple[str, str | bytes]]:
    """Return a request's metadata: text, and bytes for names that end in -bin.

    Raises InvalidRequest for a binary value that is not base64.
    """
    found: list[tuple[str, str | bytes]] = []
    for raw_name, raw in headers:
        name = raw_name.decode("ascii")
        if name.startswith((":", "grpc-")) or name in _RESERVED:
            continue
        if name.endswith("-bin"):
            found += [(name, _from_base64(name, it)) for it in raw.split(b",")]
        else:
            found.append((name, raw.decode("latin-1")))
    return found


def response_headers(encoding: str, metadata: Mapping[str, str]) -> bytes:
    """Return the block that begins an answer."""
    headers = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", ACCEPTED),
    ]
    if encoding != IDENTITY:
        headers.append(("grpc-encoding", encoding))
    return encode_headers([*headers, *_plain(metadata.items())])


def trailers(code: Code, details: str, metadata: Iterable[tuple[str, str]]) -> bytes:
    """Return the block that ends an answer."""
    return encode_headers(_status(code, details, metadata))


def trailers_only(code: Code, details: str, metadata: Iterable[tuple[str, str]]) -> bytes:
    """Return the one block of an answer without messages."""
    head = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", ACCEPTED),
    ]
    return encode_headers([*head, *_status(code, details, metadata)])


def http_error(status: int) -> bytes:
    """Return the one block of an answer to what is no gRPC."""
    return encode_headers([(":status", str(status)), ("content-length", "0")])


def chosen_encoding(compression: str, accepted: str) -> Encoding:
    """Return how answers are compressed: by the server's level, with what the client accepts."""
    if compression == "none":
        return PLAIN
    offered = {it.strip() for it in accepted.split(",")}
    name = next((it for it in ("gzip", "deflate") if it in offered), IDENTITY)
    return Encoding(name, _LEVELS[compression])


def _status(
    code: Code, details: str, metadata: Iterable[tuple[str, str]]
) -> Sequence[tuple[str, str]]:
    status = [("grpc-status", str(int(code)))]
    if details:
        status.append(("grpc-message", quote(details, safe=_PRINTABLE)))
    return [*status, *_plain(metadata)]


def _plain(metadata: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in metadata]


def _from_base64(name: str, value: bytes) -> bytes:
    value = value.strip()
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise InvalidRequest(f"metadata {name}: not base64", param=name) from None
