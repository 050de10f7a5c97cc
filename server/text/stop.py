"""Stop strings in a stream of text, found across chunk borders."""

from collections.abc import Sequence


class StopMatcher:
    """Finds the stop string that is complete first; of several, the one listed first.

    Text passes through `feed`; only a tail that may still become a stop string is held back (with
    `include`, nothing is: the stop string is sent as well). `matched` is the stop string once it
    has been found; from then on every call returns "". Not safe for use by several threads.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._first = frozenset(stop[0] for stop in self._stops)
        self._reach = max((len(stop) for stop in self._stops), default=1) - 1
        self._include = include
        self._tail = ""

    def feed(self, text: str, *, armed: bool = True) -> str:
        """Return what may be sent now. A stop string that ends in an unarmed text is no stop."""
        if self.matched is not None:
            return ""
        tail = self._tail
        if not tail and self._first.isdisjoint(text):
            return text
        seen = tail + text
        if armed and self._find(seen, len(tail)):
            return self._end(seen, len(tail))
        cut = self._cut(seen)
        self._tail = seen[cut:]
        return text if self._include else seen[:cut]

    def flush(self) -> str:
        """Return what is still held back; the text is over."""
        held, self._tail = self._tail, ""
        return "" if self._include or self.matched is not None else held

    def _find(self, seen: str, old: int) -> bool:
        best = -1
        for stop in self._stops:
            # Only matches that end in the new part: the old one was searched, or unarmed.
            start = seen.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and (best < 0 or start + len(stop) < best):
                best = start + len(stop)
                self.matched = stop
        self._end_at = best
        return best >= 0

    def _end(self, seen: str, old: int) -> str:
        assert self.matched is not None
        self._tail = ""
        if self._include:
            return seen[old : self._end_at]
        return seen[: self._end_at - len(self.matched)]

    def _cut(self, seen: str) -> int:
        """Where the longest tail starts that is the beginning of a stop string."""
        size = len(seen)
        for start in range(max(0, size - self._reach), size):
            if seen[start] in self._first:
                tail = seen[start:]
                if any(len(s) > len(tail) and s.startswith(tail) for s in self._stops):
                    return start
        return size
