"""Does a worker move? Decisions only: no clock but the one passed in."""


class ProgressWatch:
    """A worker that has requests and shows no progress for `limit_s` is stalled, until it does.

    `limit_s` 0 finds nobody stalled.
    """

    def __init__(self, limit_s: float) -> None:
        self.stalled = False
        self._limit_s = limit_s
        self._seen: object = None
        self._moved_s: float | None = None

    def look(self, now: float, *, running: int, progress: object, says_stalled: bool) -> bool:
        """Take what is seen at `now`; returns whether `stalled` has changed.

        `progress` is any value that changes when the worker moves; `says_stalled` is its own word.
        """
        moved = progress != self._seen or running == 0
        if moved or self._moved_s is None:
            self._seen, self._moved_s = progress, now
        late = bool(self._limit_s) and now - self._moved_s > self._limit_s
        stalled = late or (says_stalled and running > 0)
        changed, self.stalled = stalled != self.stalled, stalled
        return changed
