"""What a peer may do that costs us work and brings it none: budgets, per connection."""

from transport.codes import (
    CONTINUATION,
    DATA,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
)

MALFORMED, REFUSED = 0x100, 0x101
"""Not types of frames, but what is counted beside them."""

# Frame type to (at once, per second). Resets: CVE-2023-44487; CONTINUATION: CVE-2024-27316; PING,
# SETTINGS, empty DATA: CVE-2019-9512, -9515, -9518. Honest clients stay far below: a storm of
# cancels is some hundred resets, grpc sends a ping per round trip, and window updates are earned.
_LIMITS = {
    RST_STREAM: (1000.0, 200.0),
    PING: (200.0, 20.0),
    SETTINGS: (50.0, 2.0),
    PRIORITY: (1000.0, 100.0),
    DATA: (200.0, 20.0),
    WINDOW_UPDATE: (2000.0, 1000.0),
    CONTINUATION: (64.0, 16.0),
    MALFORMED: (100.0, 10.0),
    REFUSED: (2000.0, 500.0),
}
_OTHERS = (100.0, 10.0)
_NAMES = {
    RST_STREAM: "resets",
    PING: "pings",
    SETTINGS: "SETTINGS frames",
    PRIORITY: "PRIORITY frames",
    DATA: "empty DATA frames",
    WINDOW_UPDATE: "WINDOW_UPDATE frames",
    CONTINUATION: "CONTINUATION frames",
    MALFORMED: "malformed requests",
    REFUSED: "refused requests",
}


class Guard:
    """Counts one connection's costly frames. `now` is in seconds, and never goes back."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}

    def spend(self, kind: int, now: float) -> None:
        """Count one frame; raises ConnectionFault when there were too many."""
        most, per_s = _LIMITS.get(kind, _OTHERS)
        left, since = self._left.get(kind, (most, now))
        left = min(most, left + (now - since) * per_s) - 1
        self._left[kind] = (left, now)
        if left < 0:
            name = _NAMES.get(kind, "frames of an unknown type")
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {name}")

    def earn(self, kind: int, count: int) -> None:
        """Allow so many more, because we have given the peer reason to send them."""
        if kind in self._left:
            left, since = self._left[kind]
            self._left[kind] = (min(_LIMITS[kind][0], left + count), since)
