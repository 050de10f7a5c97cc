"""The open streams of a connection, and the answers on them."""

from transport.codes import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, ErrorCode
from transport.frames import frame, reset_frame
from transport.header_blocks import NO_TABLE
from transport.inflow import Window
from transport.outbox import Outbox, Outgoing


class Stream:
    """A stream: whether more may come, how much (`left`: of a content-length), and what we send.

    Of a client's: whether its answer has begun, and whether all of its request is on its way.
    """

    __slots__ = ("answered", "left", "open", "out", "sent", "window")

    def __init__(self, out: Outgoing, window: int, left: int | None, *, ended: bool) -> None:
        self.open = not ended
        self.window = Window(window)
        self.left = left
        self.out = out
        self.answered = self.sent = False


class Streams:
    """By id. Calls for a stream that is over do nothing."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._open: dict[int, Stream] = {}
        self._first_block = NO_TABLE

    def __len__(self) -> int:
        return len(self._open)

    @property
    def pending(self) -> int:
        """The bytes of data that wait for nothing but to be written."""
        return self._out.pending

    def get(self, stream_id: int) -> Stream | None:
        """Return the stream if it is open."""
        return self._open.get(stream_id)

    def add(self, stream_id: int, window: int, left: int | None, *, ended: bool) -> None:
        """Begin a stream that takes `window` bytes."""
        out = Outgoing(stream_id, self._out.initial_window)
        self._open[stream_id] = Stream(out, window, left, ended=ended)

    def ids(self) -> list[int]:
        """Return the ids of those that are open."""
        return list(self._open)

    def outgoing(self) -> list[Outgoing]:
        """Return the sending sides."""
        return [stream.out for stream in self._open.values()]

    def queued(self, stream_id: int) -> int:
        """Return the bytes that wait for the stream's window or the connection's."""
        stream = self._open.get(stream_id)
        return 0 if stream is None else stream.out.queued

    def respond(self, stream_id: int, block: bytes) -> None:
        """Send an answer's headers (a block of `encode_headers`)."""
        stream = self._open.get(stream_id)
        if stream is not None and not stream.out.closing:
            self._out.put(self._headers(stream_id, block, 0))

    def send(self, stream_id: int, data: bytes) -> bool:
        """Send bytes of an answer; returns whether they are all on their way."""
        stream = self._open.get(stream_id)
        if stream is None or stream.out.closing:
            return True
        self._out.data(stream.out, data)
        return not stream.out.queued

    def end(self, stream_id: int, block: bytes) -> None:
        """Send trailers, or headers that are the whole answer, behind what is queued."""
        stream = self._open.get(stream_id)
        if stream is not None and not stream.out.closing:
            self._out.end(stream.out, self._headers(stream_id, block, END_STREAM))
            self.forget_ended()  # at once, unless something is queued

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream at once; what is queued is not sent."""
        if self.forget(stream_id):
            self._out.put(reset_frame(stream_id, code))

    def forget(self, stream_id: int) -> bool:
        """Let go of a stream; returns whether it was open."""
        stream = self._open.pop(stream_id, None)
        if stream is None:
            return False
        self._out.drop(stream.out)
        return True

    def forget_all(self) -> None:
        """Let go of every stream."""
        for stream_id in tuple(self._open):
            self.forget(stream_id)

    def forget_ended(self) -> list[int]:
        """Let go of streams that we have ended; returns them."""
        ended, self._out.ended = self._out.ended, []
        for stream_id in ended:
            stream = self._open.pop(stream_id, None)
            if stream is not None and stream.open:
                # RFC 9113, section 8.1: the client need not send the rest.
                self._out.put(reset_frame(stream_id, ErrorCode.NO_ERROR))
        return ended

    def _headers(self, stream_id: int, block: bytes, flags: int) -> bytes:
        block, self._first_block = self._first_block + block, b""
        most = self._out.max_frame
        if len(block) <= most:
            return frame(HEADERS, flags | END_HEADERS, stream_id, block)
        parts = [block[at : at + most] for at in range(0, len(block), most)]
        frames = [frame(HEADERS, flags, stream_id, parts[0])]
        frames += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
        return b"".join([*frames, frame(CONTINUATION, END_HEADERS, stream_id, parts[-1])])
