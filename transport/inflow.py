"""What the peer may still send, and when it is told that it may send more."""


class Window:
    """A receiving window that opens again by what was taken, half of it at a time."""

    __slots__ = ("_left", "_size", "_taken")

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._taken = 0

    def take(self, size: int) -> int | None:
        """Take bytes; returns the increment to announce, 0 for none, None for an overflow."""
        return self.give_back(size) if self.hold(size) else None

    def hold(self, size: int) -> bool:
        """Take bytes that are given back later; returns whether they fit."""
        self._left -= size
        return self._left >= 0

    def give_back(self, size: int) -> int:
        """Let the peer send so many more; returns the increment to announce, 0 for none."""
        self._taken += size
        if self._taken * 2 < self._size:
            return 0
        increment, self._taken = self._taken, 0
        self._left += increment
        return increment
