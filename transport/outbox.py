"""What we have to send, as both flow-control windows let it (RFC 9113, section 5.2)."""

from collections import deque
from collections.abc import Iterable

from transport.codes import (
    DATA,
    DEFAULT_WINDOW,
    MAX_WINDOW,
    MIN_FRAME_SIZE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
)
from transport.frames import frame_head


class Outgoing:
    """One stream's sending side.

    `queued` is in bytes; `last` is the frame behind all data; `closing`: nothing can be added.
    """

    __slots__ = ("chunks", "closing", "last", "queued", "stream_id", "window")

    def __init__(self, stream_id: int, window: int) -> None:
        self.stream_id = stream_id
        self.window = window
        self.chunks: deque[bytes] = deque()
        self.queued = 0
        self.last: bytes | None = None
        self.closing = False


class Outbox:
    """Frames in the order in which they are to be written; `take` empties it.

    `drained` collects the ids of streams whose queue has become empty, `ended` of those whose last
    frame is out. `data_frames` counts those sent, `pending` the bytes of data that `take` would
    return.
    """

    def __init__(self) -> None:
        self.initial_window = DEFAULT_WINDOW
        self.max_frame = MIN_FRAME_SIZE
        self.window = DEFAULT_WINDOW
        self.drained: list[int] = []
        self.ended: list[int] = []
        self.data_frames = 0
        self.pending = 0
        self._frames: list[bytes] = []
        # Streams that only the connection's window holds back, the next one first.
        self._waiting: dict[int, Outgoing] = {}

    def __bool__(self) -> bool:
        return bool(self._frames)

    def take(self) -> bytes:
        """Return all that may be written now."""
        data = b"".join(self._frames)
        self._frames.clear()
        self.pending = 0
        return data

    def put(self, frame: bytes) -> None:
        """Add a frame that no window holds back."""
        self._frames.append(frame)

    def data(self, stream: Outgoing, data: bytes) -> None:
        """Add bytes of a stream, or queue what does not fit its window.

        What is queued is told as drained later, and nothing else is.
        """
        size = len(data)
        if stream.queued or size > self.max_frame or size > stream.window or size > self.window:
            stream.chunks.append(data)
            stream.queued += size
            self._send_chunks(stream)
            if stream.queued and stream.window > 0:
                self._waiting[stream.stream_id] = stream
            return
        stream.window -= size
        self.window -= size
        self.data_frames += 1
        self.pending += size
        self._frames.append(frame_head(size, DATA, 0, stream.stream_id))
        self._frames.append(data)

    def end(self, stream: Outgoing, last: bytes) -> None:
        """Close a stream with a frame that comes behind its data."""
        stream.closing = True
        if stream.queued:
            stream.last = last
        else:
            self._close(stream, last)

    def drop(self, stream: Outgoing) -> None:
        """Forget what is queued."""
        stream.closing = True
        stream.chunks.clear()
        stream.queued = 0
        self._waiting.pop(stream.stream_id, None)

    def grow(self, stream: Outgoing, increment: int) -> None:
        """The peer takes more of one stream. Raises StreamFault past the largest window."""
        stream.window += increment
        if stream.window > MAX_WINDOW:
            raise StreamFault(
                stream.stream_id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window overflows"
            )
        if stream.queued:
            self._send_chunks(stream)
            self._settle(stream)

    def grow_connection(self, increment: int) -> None:
        """The peer takes more of all streams. Raises ConnectionFault past the largest window."""
        self.window += increment
        if self.window > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
        while self._waiting and self.window > 0:
            stream = self._waiting.pop(next(iter(self._waiting)))
            # One frame each: none shall wait for another's long message.
            self._send_chunk(stream)
            self._settle(stream)

    def set_initial_window(self, size: int, streams: Iterable[Outgoing]) -> None:
        """The peer's SETTINGS_INITIAL_WINDOW_SIZE, for streams that are open too."""
        change = size - self.initial_window
        self.initial_window = size
        for stream in streams:
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, "a setting makes a stream's window overflow"
                )
            if stream.queued and change > 0:
                self._send_chunks(stream)
            self._settle(stream)

    def _send_chunks(self, stream: Outgoing) -> None:
        while stream.queued and stream.window > 0 and self.window > 0:
            self._send_chunk(stream)

    def _send_chunk(self, stream: Outgoing) -> None:
        chunk = stream.chunks.popleft()
        size = min(len(chunk), self.max_frame, stream.window, self.window)
        if size < len(chunk):
            stream.chunks.appendleft(chunk[size:])
            chunk = chunk[:size]
        stream.queued -= size
        stream.window -= size
        self.window -= size
        self.data_frames += 1
        self.pending += size
        self._frames.append(frame_head(size, DATA, 0, stream.stream_id))
        self._frames.append(chunk)

    def _settle(self, stream: Outgoing) -> None:
        if stream.queued:
            if stream.window > 0:
                self._waiting[stream.stream_id] = stream
            return
        self._waiting.pop(stream.stream_id, None)
        if stream.last is not None:
            self._close(stream, stream.last)
        else:
            self.drained.append(stream.stream_id)

    def _close(self, stream: Outgoing, last: bytes) -> None:
        stream.last = None
        self._frames.append(last)
        self.ended.append(stream.stream_id)
