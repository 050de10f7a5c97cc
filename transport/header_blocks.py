"""Header blocks: HPACK by the hpack library, and what a request's headers must be.

Our own blocks have literals alone, never indexed: they depend on no state, so that the constant
ones are encoded once. RFC 9113, sections 8.2 and 8.3; RFC 7541.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hpack

from transport.codes import ConnectionFault, ErrorCode, StreamFault

Headers = Sequence[tuple[bytes, bytes]]

NO_TABLE = b"\x20"
"""Dynamic table size update to 0 (RFC 7541, section 6.3): begins our first block."""

_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTIONS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_encoder = hpack.Encoder()
_encoder.header_table_size = 0
_encoder.encode([])  # the size update, which NO_TABLE is on each connection


def encode_headers(headers: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """Return a block of literals."""
    block: bytes = _encoder.encode([(name, value, True) for name, value in headers], huffman=False)
    return block


class HeaderReader:
    """Decodes the blocks of one connection, in their order.

    `max_bytes` is for names and values together, with 32 bytes for each (RFC 9113, section 6.5.2).
    """

    def __init__(self, max_bytes: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_bytes)

    def decode(self, block: bytes) -> Headers:
        """Raises ConnectionFault: after a block that cannot be read, no other can."""
        try:
            found: Any = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from None
        except hpack.HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"headers: {error}") from None
        headers: Headers = found
        return headers


def check_request(stream_id: int, headers: Headers) -> None:
    """Raise StreamFault unless these can begin a request."""
    pseudo: dict[bytes, bytes] = {}
    for place, (name, value) in enumerate(headers):
        if not name.startswith(b":"):
            _check_fields(stream_id, headers[place:])
            break
        if name not in _REQUEST_PSEUDO or name in pseudo:
            raise _malformed(stream_id, f"pseudo-header {name.decode('latin-1')!r}")
        pseudo[name] = value
    for name in (b":method", b":scheme", b":path"):
        if not pseudo.get(name):
            raise _malformed(stream_id, f"no {name.decode()}")


def check_trailers(stream_id: int, headers: Headers) -> None:
    """Raise StreamFault unless these can end a request."""
    _check_fields(stream_id, headers)


def content_length(stream_id: int, headers: Headers) -> int | None:
    """What a request says of its length. Raises StreamFault for what is no length."""
    found = {value for name, value in headers if name == b"content-length"}
    if not found:
        return None
    value = found.pop()
    if found or not value.isdigit():
        raise _malformed(stream_id, "content-length")
    return int(value)


def as_mapping(headers: Headers) -> Mapping[bytes, bytes]:
    """By name, the values of one name joined with commas."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b"," + value if name in found else value
    return found


def _check_fields(stream_id: int, headers: Headers) -> None:
    for name, value in headers:
        if name.startswith(b":"):
            raise _malformed(stream_id, "a pseudo-header behind other headers")
        if not name or name != name.lower() or name in _OF_CONNECTIONS or _has_controls(name):
            raise _malformed(stream_id, f"header {name.decode('latin-1')!r}")
        if name == b"te" and value != b"trailers":
            raise _malformed(stream_id, "te")
        if value != value.strip(b" \t") or b"\0" in value or b"\r" in value or b"\n" in value:
            raise _malformed(stream_id, f"the value of {name.decode('latin-1')!r}")


def _has_controls(name: bytes) -> bool:
    # RFC 9113, section 8.2.1: no controls, blanks, colons or bytes beyond ASCII.
    return any(byte <= 0x20 or byte >= 0x7F or byte == 0x3A for byte in name)


def _malformed(stream_id: int, what: str) -> StreamFault:
    return StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"malformed request: {what}")
