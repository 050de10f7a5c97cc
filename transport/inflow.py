"""What the peer may still send, and when it is told that it may send more."""


class Window:
    """A receiving window that opens again by what was taken, half of it at a time."""

    __slots__ = ("_left", "_size", "_taken")

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._taken = 0

    def take(self, size: int) -> int | None:
        """Take bytes; returns the increment to announce, 0 for none, None for an overflow."""
        self._left -= size
        if self._left < 0:
            return None
        self._taken += size
        if self._taken * 2 < self._size:
            return 0
        increment, self._taken = self._taken, 0
        self._left += increment
        return increment
