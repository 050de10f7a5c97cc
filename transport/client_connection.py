"""The client's side of one HTTP/2 connection, without I/O: bytes in, events and bytes out.

What a stream brings counts as taken when its owner says so (`consumed`): a slow reader holds its
server back, and no other stream.
"""

from transport.blocks_in import Block
from transport.codes import (
    DATA,
    ENABLE_PUSH,
    END_STREAM,
    MAX_CONCURRENT_STREAMS,
    MAX_STREAM_ID,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
)
from transport.endpoint import Endpoint, Limits
from transport.events import (
    DataReceived,
    GoingAway,
    ResponseStarted,
    StreamReset,
    TrailersReceived,
)
from transport.frames import frame, reset_frame, window_frame
from transport.streams import Stream, Streams


class Requests(Streams):
    """A client's streams: each is over when both sides have said all."""

    def half_close(self, stream_id: int) -> None:
        """Say that a request is complete, behind what is queued of it."""
        stream = self._open.get(stream_id)
        if stream is not None and not stream.out.closing:
            self._out.end(stream.out, frame(DATA, END_STREAM, stream_id))
            self.forget_ended()

    def forget_ended(self) -> list[int]:
        """Note which requests are on their way; no stream is over by that."""
        ended, self._out.ended = self._out.ended, []
        for stream_id in ended:
            stream = self._open.get(stream_id)
            if stream is not None:
                stream.sent = True
        return []


class ClientConnection(Endpoint):
    """Requests are begun with `request` and go on through `streams`; answers come as events."""

    _make_streams = Requests
    streams: Requests

    def __init__(self, limits: Limits, *, first_id: int = 1) -> None:
        super().__init__(limits, {ENABLE_PUSH: 0}, greeted=True)
        self._preface = PREFACE
        self._next_id = first_id
        self._going = False
        self._greeted = False
        self._most = MAX_STREAM_ID

    @property
    def takes_more(self) -> bool:
        """Whether a request may begin here now: not before the server has said how many may."""
        return (
            self._greeted
            and not self._going
            and not self._failed
            and not self.exhausted
            and len(self.streams) < self._most
        )

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids have been used: what more there is needs another connection."""
        return self._next_id > MAX_STREAM_ID

    def take(self) -> bytes:
        """Return what is to be written."""
        preface, self._preface = self._preface, b""
        return preface + super().take()

    def request(self, block: bytes) -> int:
        """Begin a request with its headers; returns its stream."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._last_id = stream_id
        self.streams.add(stream_id, self._limits.stream_window, None, ended=False)
        self.streams.respond(stream_id, block)
        return stream_id

    def consumed(self, stream_id: int, size: int) -> None:
        """Let the server send so many bytes more of a stream."""
        stream = self.streams.get(stream_id)
        if stream is not None and (increment := stream.window.give_back(size)):
            self._out.put(window_frame(stream_id, increment))

    def _take(self, stream_id: int, stream: Stream, size: int, data: bytes, *, ended: bool) -> None:
        if not stream.open or not stream.answered:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "DATA outside of an answer")
        if not stream.window.hold(size):
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more than the window")
        self._events.append(DataReceived(stream_id, data, ended))
        self.consumed(stream_id, size - len(data))
        if ended:
            self._over(stream_id, stream)

    def _on_block(self, block: Block) -> None:
        stream_id, ended, encoded = block
        headers = self._headers.decode(encoded)
        stream = self._known(stream_id)
        if stream is None:
            return
        status = dict(headers).get(b":status", b"")
        if not stream.answered:
            if status.startswith(b"1") and not ended:
                return
            if not status:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "an answer without a status")
            stream.answered = True
            self._events.append(ResponseStarted(stream_id, headers, ended))
        elif not ended:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without an end")
        else:
            self._events.append(TrailersReceived(stream_id, headers))
        if ended:
            self._over(stream_id, stream)

    def _on_going(self, last_id: int) -> None:
        if not self._going:
            self._going = True
            self._events.append(GoingAway())
        for stream_id in self.streams.ids():
            if stream_id > last_id:
                self.streams.forget(stream_id)
                self._events.append(StreamReset(stream_id, ErrorCode.REFUSED_STREAM))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        super()._on_settings(flags, stream_id, payload)
        self._greeted = True

    def _set(self, name: int, value: int) -> None:
        if name == ENABLE_PUSH and value:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a server that would be pushed to")
        if name == MAX_CONCURRENT_STREAMS:
            self._most = value
        super()._set(name, value)

    def _over(self, stream_id: int, stream: Stream) -> None:
        stream.open = False
        self.streams.forget(stream_id)
        if not stream.sent:
            # The server has answered without all of the request.
            self._out.put(reset_frame(stream_id, ErrorCode.CANCEL))
