"""Frames of HTTP/2 to bytes and back (RFC 9113, section 4)."""

import struct
from collections.abc import Iterator, Mapping

from transport.codes import (
    GOAWAY,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
)

HEAD_BYTES = 9
_head = struct.Struct(">HBBBL")
_setting = struct.Struct(">HL")
_number = struct.Struct(">L")
_STREAM_BITS = 2**31 - 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one frame; the length is the caller's to keep within the peer's limit."""
    size = len(payload)
    return _head.pack(size >> 8, size & 255, kind, flags, stream_id) + payload


def frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the nine bytes before a payload."""
    return _head.pack(size >> 8, size & 255, kind, flags, stream_id)


def settings_frame(settings: Mapping[int, int]) -> bytes:
    """Return SETTINGS with these values."""
    payload = b"".join(_setting.pack(name, value) for name, value in settings.items())
    return frame(SETTINGS, 0, 0, payload)


def reset_frame(stream_id: int, code: int) -> bytes:
    """Return RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, _number.pack(code))


def window_frame(stream_id: int, increment: int) -> bytes:
    """Return WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream_id, _number.pack(increment))


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    """Return PING with eight bytes."""
    return frame(PING, flags, 0, payload)


def goaway_frame(last_stream_id: int, code: int, text: str = "") -> bytes:
    """Return GOAWAY; `text` is for whoever debugs the peer."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code) + text.encode())


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings of a frame in their order."""
    if len(payload) % _setting.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of no whole number of settings")
    return list(_setting.iter_unpack(payload))


def read_number(payload: bytes) -> int:
    """Return the 32 bits of RST_STREAM and WINDOW_UPDATE."""
    if len(payload) != _number.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "expected a payload of four bytes")
    number: int = _number.unpack(payload)[0]
    return number


def without_padding(flags: int, payload: bytes) -> bytes:
    """Return what a padded frame carries (RFC 9113, section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


class FrameReader:
    """Cuts a stream of bytes into frames, after the client's preface."""

    def __init__(self, max_frame_size: int) -> None:
        self._max = max_frame_size
        self._rest = b""
        self.begun = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (type, flags, stream id, payload) of each frame that is complete.

        Raises ConnectionFault for what is no preface, and for a frame that is too long.
        """
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        if not self.begun:
            if not data.startswith(PREFACE[:end]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "expected the preface of HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return
            self.begun = True
            at = len(PREFACE)
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream_id = _head.unpack_from(data, at)
            size = high << 8 | low
            if size > self._max:
                raise ConnectionFault(
                    ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes, over {self._max}"
                )
            stop = at + HEAD_BYTES + size
            if stop > end:
                break
            self._rest = b""
            yield kind, flags, stream_id & _STREAM_BITS, data[at + HEAD_BYTES : stop]
            at = stop
        self._rest = data[at:]
