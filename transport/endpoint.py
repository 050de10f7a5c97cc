"""What both sides of an HTTP/2 connection do, without I/O: frames, flow control, settings, pings.

RFC 9113. Priorities are ignored, nothing is pushed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transport.blocks_in import Block, BlockReader
from transport.codes import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_FRAME_SIZE_SETTING,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    MIN_FRAME_SIZE,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
)
from transport.events import (
    AnswerSent,
    ConnectionFailed,
    DataReceived,
    Drained,
    Event,
    PingAnswered,
    SettingsAcknowledged,
    StreamReset,
)
from transport.frames import (
    FrameReader,
    frame,
    goaway_frame,
    ping_frame,
    read_number,
    read_settings,
    reset_frame,
    settings_frame,
    window_frame,
    without_padding,
)
from transport.guard import MALFORMED, REFUSED, Guard
from transport.header_blocks import (
    HeaderReader,
)
from transport.inflow import Window
from transport.outbox import Outbox
from transport.streams import Stream, Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this side takes. Sizes and windows in bytes; `max_streams` None is no limit.

    Headers over `max_header_bytes` end the connection: the owner's own limit is lower.
    """

    max_header_bytes: int = 64 * 1024
    max_streams: int | None = None
    max_frame_size: int = 64 * 1024
    stream_window: int = 1024 * 1024
    connection_window: int = 16 * 1024 * 1024


class Endpoint:
    """Give it what arrives, write what `take` returns. It ends with ConnectionFailed.

    After `receive` or any call that sends, `take` may have something.
    """

    def __init__(self, limits: Limits, settings: Mapping[int, int], *, greeted: bool) -> None:
        """`greeted`: no preface comes, because this side is the client."""
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_size)
        self._reader.begun = greeted
        self._headers = HeaderReader(limits.max_header_bytes)
        self._guard = Guard()
        self._out = Outbox()
        self.streams = self._make_streams(self._out)
        self._events: list[Event] = []
        self._blocks = BlockReader(limits.max_header_bytes)
        self._window = Window(limits.connection_window)
        self._last_id = 0
        self._failed = False
        self._now = 0.0
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._on_data,
            HEADERS: self._on_headers,
            CONTINUATION: self._on_continuation,
            PRIORITY: self._on_priority,
            RST_STREAM: self._on_reset,
            SETTINGS: self._on_settings,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window_update,
            PUSH_PROMISE: self._on_push_promise,
        }
        own = {
            MAX_FRAME_SIZE_SETTING: limits.max_frame_size,
            INITIAL_WINDOW_SIZE: limits.stream_window,
            MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        }
        self._out.put(settings_frame({**own, **settings}))
        self._out.put(window_frame(0, limits.connection_window - DEFAULT_WINDOW))

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer; `now` in seconds. Nothing happens after ConnectionFailed."""
        if self._failed:
            return []
        self._now = now
        try:
            for kind, flags, stream_id, payload in self._reader.feed(data):
                try:
                    self._frame(kind, flags, stream_id, payload)
                except StreamFault as fault:
                    self._end_by_fault(fault)
        except ConnectionFault as fault:
            self.fail(fault.code, fault.text)
        return self._told()

    def take(self) -> bytes:
        """Return what is to be written."""
        return self._out.take()

    @property
    def has_output(self) -> bool:
        """Whether `take` would return anything."""
        return bool(self._out)

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life, with eight bytes that come back."""
        self._out.put(ping_frame(payload))

    def fail(self, code: ErrorCode, text: str) -> None:
        """End the connection: GOAWAY, and nothing after it."""
        if not self._failed:
            self._failed = True
            self.streams.forget_all()
            self._out.put(goaway_frame(self._last_id, code, text))
            self._events.append(ConnectionFailed(code, text))

    # ------------------------------------------------------------------ for either side
    _make_streams: type[Streams] = Streams

    def _on_block(self, block: Block) -> None:
        """Take a whole header block."""
        raise NotImplementedError

    def _on_going(self, last_id: int) -> None:
        """The peer goes, and has taken streams up to this one."""
        raise NotImplementedError

    # ------------------------------------------------------------------ frames
    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self._blocks.check_place(kind, stream_id)
        handler = self._handlers.get(kind)
        if handler is None:
            # RFC 9113, section 4.1: unknown types are ignored.
            self._guard.spend(kind, self._now)
        else:
            handler(flags, stream_id, payload)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        data = without_padding(flags, payload)
        ended = bool(flags & END_STREAM)
        increment = self._window.take(size)
        if increment is None:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
        if increment:
            self._out.put(window_frame(0, increment))
        stream = self._known(stream_id)
        if not data and not ended:
            self._guard.spend(DATA, self._now)
        if stream is not None:
            self._take(stream_id, stream, size, data, ended=ended)

    def _take(self, stream_id: int, stream: Stream, size: int, data: bytes, *, ended: bool) -> None:
        if not stream.open:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA behind the end")
        increment = stream.window.take(size)
        if increment is None:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more than the window")
        if stream.left is not None:
            stream.left -= len(data)
            if stream.left < 0 or (ended and stream.left):
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "not the content-length")
        if ended:
            stream.open = False
        elif increment:
            self._out.put(window_frame(stream_id, increment))
        self._events.append(DataReceived(stream_id, data, ended))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._blocks.headers(flags, stream_id, payload)
        if block is not None:
            self._on_block(block)

    def _on_continuation(self, flags: int, _: int, payload: bytes) -> None:
        self._guard.spend(CONTINUATION, self._now)
        block = self._blocks.continuation(flags, payload)
        if block is not None:
            self._on_block(block)

    def _on_priority(self, _: int, stream_id: int, payload: bytes) -> None:
        self._guard.spend(PRIORITY, self._now)
        if stream_id == 0:
            raise _broken("PRIORITY of no stream")
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")

    def _on_reset(self, _: int, stream_id: int, payload: bytes) -> None:
        code = read_number(payload)
        self._known(stream_id)
        self._guard.spend(RST_STREAM, self._now)
        if self.streams.forget(stream_id):
            self._events.append(StreamReset(stream_id, code))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _broken("SETTINGS of a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            self._events.append(SettingsAcknowledged())
            return
        self._guard.spend(SETTINGS, self._now)
        # Before what a larger window lets out: the peer counts by it from here on.
        self._out.put(frame(SETTINGS, ACK, 0))
        for name, value in read_settings(payload):
            self._set(name, value)

    def _set(self, name: int, value: int) -> None:
        if name == ENABLE_PUSH and value > 1:
            raise _broken("SETTINGS_ENABLE_PUSH is neither 0 nor 1")
        if name == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is too large"
                )
            self._out.set_initial_window(value, self.streams.outgoing())
            self._tell_ended()
        elif name == MAX_FRAME_SIZE_SETTING:
            if not MIN_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
                raise _broken("SETTINGS_MAX_FRAME_SIZE is out of range")
            self._out.max_frame = value

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _broken("PING of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        if flags & ACK:
            self._events.append(PingAnswered(payload))
            return
        self._guard.spend(PING, self._now)
        self._out.put(ping_frame(payload, ACK))

    def _on_goaway(self, _: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _broken("GOAWAY of a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._guard.spend(GOAWAY, self._now)
        self._on_going(read_number(payload[:4]) & MAX_STREAM_ID)

    def _on_window_update(self, _: int, stream_id: int, payload: bytes) -> None:
        increment = read_number(payload) & MAX_WINDOW
        self._guard.earn(WINDOW_UPDATE, self._out.data_frames * 2)
        self._out.data_frames = 0
        self._guard.spend(WINDOW_UPDATE, self._now)
        if stream_id == 0:
            if not increment:
                raise _broken("WINDOW_UPDATE of nothing")
            self._out.grow_connection(increment)
        else:
            stream = self._known(stream_id)
            if not increment:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            if stream is not None:
                self._out.grow(stream.out, increment)
        self._tell_ended()

    def _on_push_promise(self, *_: object) -> None:
        raise _broken("PUSH_PROMISE, which nobody may send here")

    # ------------------------------------------------------------------ streams
    def _known(self, stream_id: int) -> Stream | None:
        """A stream that has begun; None when it is over. Raises ConnectionFault for others."""
        stream = self.streams.get(stream_id)
        if stream is None and (stream_id > self._last_id or stream_id % 2 == 0):
            raise _broken(f"a frame of stream {stream_id}, which has not begun")
        return stream

    def _end_by_fault(self, fault: StreamFault) -> None:
        refused = fault.code is ErrorCode.REFUSED_STREAM
        self._guard.spend(REFUSED if refused else MALFORMED, self._now)
        self._out.put(reset_frame(fault.stream_id, fault.code))
        if self.streams.forget(fault.stream_id):
            self._events.append(StreamReset(fault.stream_id, fault.code))

    def _tell_ended(self) -> None:
        self._events += [AnswerSent(it) for it in self.streams.forget_ended()]

    def _told(self) -> list[Event]:
        events, self._events = self._events, []
        if self._out.drained:
            events += [Drained(it) for it in self._out.drained]
            self._out.drained.clear()
        return events


def _broken(text: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.PROTOCOL_ERROR, text)
