"""HEADERS and CONTINUATION to whole header blocks (RFC 9113, sections 6.2 and 6.10)."""

from transport.codes import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    WITH_PRIORITY,
    ConnectionFault,
    ErrorCode,
)
from transport.frames import without_padding

_PRIORITY_BYTES = 5
Block = tuple[int, bool, bytes]
"""A stream, whether nothing follows on it, and the block."""


class BlockReader:
    """Puts blocks together; no other frame may come between their parts."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._stream_id = 0
        self._ended = False
        self._parts = bytearray()

    def check_place(self, kind: int, stream_id: int) -> None:
        """Raise ConnectionFault for a frame that may not come now."""
        if (kind == CONTINUATION) != (self._stream_id != 0) or (
            self._stream_id and stream_id != self._stream_id
        ):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")

    def headers(self, flags: int, stream_id: int, payload: bytes) -> Block | None:
        """Take HEADERS; returns the block if that is all of it."""
        if stream_id % 2 == 0:
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"HEADERS of stream {stream_id}, which no client opens"
            )
        part = without_padding(flags, payload)
        if flags & WITH_PRIORITY:
            if len(part) < _PRIORITY_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            part = part[_PRIORITY_BYTES:]
        ended = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            return stream_id, ended, part
        self._stream_id, self._ended = stream_id, ended
        self._parts[:] = part
        return None

    def continuation(self, flags: int, payload: bytes) -> Block | None:
        """Take CONTINUATION; returns the block if that was the rest of it."""
        self._parts += payload
        if len(self._parts) > self._max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block that is too long")
        if not flags & END_HEADERS:
            return None
        stream_id, self._stream_id = self._stream_id, 0
        return stream_id, self._ended, bytes(self._parts)
