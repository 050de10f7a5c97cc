"""What a connection tells its owner. A stream's id is the peer's."""

from dataclasses import dataclass
from typing import TypeAlias

from transport.header_blocks import Headers


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """A new stream. `ended`: nothing follows."""

    stream_id: int
    headers: Headers
    ended: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of a request. `ended`: nothing follows."""

    stream_id: int
    data: bytes
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is over, by the peer's wish or because it broke a rule; `code` says why."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class Drained:
    """All that was queued for the stream is on its way."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class AnswerSent:
    """The stream is over: all that was queued for it is on its way, its end too."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The peer has answered our ping."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class SettingsAcknowledged:
    """The peer has taken our settings."""


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke the rules of the connection: write what is left, then close it."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    """An answer begins. `ended`: its headers are all of it."""

    stream_id: int
    headers: Headers
    ended: bool


@dataclass(frozen=True, slots=True)
class TrailersReceived:
    """An answer ends."""

    stream_id: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The server takes no more streams."""


Event: TypeAlias = (
    RequestStarted
    | ResponseStarted
    | TrailersReceived
    | GoingAway
    | DataReceived
    | StreamReset
    | Drained
    | AnswerSent
    | PingAnswered
    | SettingsAcknowledged
    | ConnectionFailed
)
