"""Who wants to hear of a change, on one event loop."""

from collections.abc import Callable

Listener = Callable[[], None]
"""Told that something changed, in the midst of the change: it must be quick and not raise."""


class Listeners:
    """Calls everybody who listens, in the order they came."""

    def __init__(self) -> None:
        self._all: dict[Listener, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, listener: Listener) -> None:
        """Tell `listener` from now on; adding it again changes nothing."""
        self._all[listener] = None

    def discard(self, listener: Listener) -> None:
        """Tell `listener` no more; an unknown one is ignored."""
        self._all.pop(listener, None)

    def tell(self) -> None:
        """Say that something changed."""
        for listener in tuple(self._all):
            listener()
