"""The server's side of one HTTP/2 connection, without I/O: bytes in, events and bytes out.

Data counts as taken when it is received: handlers do not block, and a request's size is bounded by
who reads its messages.
"""

from transport.blocks_in import Block
from transport.codes import MAX_CONCURRENT_STREAMS, MAX_STREAM_ID, ErrorCode, StreamFault
from transport.endpoint import Endpoint, Limits
from transport.events import DataReceived, RequestStarted
from transport.frames import goaway_frame
from transport.guard import MALFORMED
from transport.header_blocks import Headers, check_request, check_trailers, content_length

__all__ = ["Connection", "Limits"]


class Connection(Endpoint):
    """Requests come as events and are answered on `streams`."""

    def __init__(self, limits: Limits) -> None:
        most = limits.max_streams
        settings = {} if most is None else {MAX_CONCURRENT_STREAMS: most}
        super().__init__(limits, settings, greeted=False)
        self._refuse_after = MAX_STREAM_ID

    @property
    def begun(self) -> bool:
        """Whether the client's preface has come."""
        return self._reader.begun

    def announce_end(self) -> None:
        """Tell the peer to go elsewhere; streams that it begins meanwhile are still served."""
        self._out.put(goaway_frame(MAX_STREAM_ID, ErrorCode.NO_ERROR))

    def refuse_new(self) -> None:
        """Serve the streams there are and no others. Idempotent."""
        if self._refuse_after == MAX_STREAM_ID:
            self._refuse_after = self._last_id
            self._out.put(goaway_frame(self._last_id, ErrorCode.NO_ERROR))

    def _on_going(self, last_id: int) -> None:
        """The client goes on reading what it has asked for, and closes when it has all of it."""

    def _on_block(self, block: Block) -> None:
        stream_id, ended, encoded = block
        headers = self._headers.decode(encoded)
        if stream_id > self._last_id:
            self._begin(stream_id, headers, ended)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            # Trailers that crossed our end of the stream.
            self._guard.spend(MALFORMED, self._now)
            return
        if not stream.open:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS behind the end")
        if not ended:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without an end")
        check_trailers(stream_id, headers)
        if stream.left:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "not the content-length")
        stream.open = False
        self._events.append(DataReceived(stream_id, b"", True))

    def _begin(self, stream_id: int, headers: Headers, ended: bool) -> None:
        self._last_id = stream_id
        if stream_id > self._refuse_after:
            return
        check_request(stream_id, headers)
        left = content_length(stream_id, headers)
        if ended and left:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "not the content-length")
        most = self._limits.max_streams
        if most is not None and len(self.streams) >= most:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        self.streams.add(stream_id, self._limits.stream_window, left, ended=ended)
        self._events.append(RequestStarted(stream_id, headers, ended))
