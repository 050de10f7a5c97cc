"""The prompts that are being answered, and on which rows: a tree of runs of blocks.

Requests go and come with their whole prompts. What is done for each of them takes time by the
prompts that its own one parts from, not by its blocks: 131,072 tokens are 8192 of them.
"""

from collections.abc import Iterator

import numpy as np

from wire.block_hash import Hashes


class _Run:
    """Blocks that the same prompts have, in a row.

    `users` and `computing` are how many prompts of each row have them and have yet to compute
    them; rows without any are left out. `following` has the runs behind, by their first block.
    """

    __slots__ = ("computing", "following", "hashes", "users")

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self.users: dict[int, int] = {}
        self.computing: dict[int, int] = {}
        self.following: dict[int, _Run] = {}

    def cut(self, blocks: int) -> None:
        """Leave the first blocks here, and the others in a run behind."""
        rest = _Run(self.hashes[blocks:].copy())
        rest.users, rest.computing = self.users.copy(), self.computing.copy()
        rest.following = self.following
        self.hashes = self.hashes[:blocks].copy()
        self.following = {rest.hashes.item(0): rest}

    def join(self) -> None:
        """Take in the run behind where nothing tells the two apart."""
        if len(self.following) != 1 or self.computing:
            return
        (rest,) = self.following.values()
        if rest.users == self.users and not rest.computing:
            self.hashes = np.concatenate((self.hashes, rest.hashes))
            self.following = rest.following


class PromptTree:
    """Prompts by their prefix hashes."""

    def __init__(self) -> None:
        self._first: dict[int, _Run] = {}

    def __bool__(self) -> bool:
        """Whether there is any prompt."""
        return bool(self._first)

    def add(self, row: int, hashes: Hashes, computed: int) -> int:
        """Add a prompt, of which `computed` blocks need no computing.

        Returns how many of its blocks no other prompt of the row has.
        """
        new = 0
        for run, at in self._grown(hashes, min(computed, len(hashes))):
            users = run.users.get(row, 0)
            if not users:
                new += len(run.hashes)
            run.users[row] = users + 1
            if at >= computed:
                run.computing[row] = run.computing.get(row, 0) + 1
        return new

    def computed(self, row: int, hashes: Hashes, before: int) -> None:
        """Nothing is to be computed any more of a prompt of which `before` blocks were known."""
        for _, run, at in self._path(hashes):
            if at >= before:
                _less(run.computing, row)

    def remove(self, row: int, hashes: Hashes) -> int:
        """Take out a prompt, which is computed.

        Returns how many of its blocks no prompt of the row has any more.
        """
        gone = 0
        for runs, run, _ in reversed(list(self._path(hashes))):
            if _less(run.users, row):
                gone += len(run.hashes)
            if run.users:
                run.join()
            else:
                del runs[run.hashes.item(0)]
        return gone

    def shared(self, row: int, hashes: Hashes) -> tuple[int, int]:
        """How many of a prompt's first blocks prompts of the row have, and have yet to compute."""
        first = self._first.get(hashes.item(0)) if len(hashes) else None
        if first is None or row not in first.users:
            return 0, 0
        blocks = computing = 0
        for run, depth in self._along(hashes):
            if row not in run.users:
                break
            if row in run.computing:
                computing += depth - blocks
            blocks = depth
        return blocks, computing

    def depths(self, hashes: Hashes) -> Iterator[tuple[list[int], int]]:
        """Yield rows and how many of a prompt's first blocks they have, ever less of them."""
        for run, depth in self._along(hashes):
            yield list(run.users), depth

    def _grown(self, hashes: Hashes, computed: int) -> Iterator[tuple[_Run, int]]:
        """Yield the runs of a new prompt and where each begins. They end where it is to end."""
        runs, at = self._first, 0
        while at < len(hashes):
            end = computed if at < computed else len(hashes)
            run = runs.get(hashes.item(at))
            if run is None:
                # A copy: a part would keep the whole prompt.
                run = runs[hashes.item(at)] = _Run(hashes[at:end].copy())
            else:
                blocks = _common(run.hashes, hashes[at:end])
                if blocks < len(run.hashes):
                    run.cut(blocks)
            yield run, at
            at += len(run.hashes)
            runs = run.following

    def _path(self, hashes: Hashes) -> Iterator[tuple[dict[int, _Run], _Run, int]]:
        """Yield the runs of a prompt that was added, what each is in and where it begins."""
        runs, at = self._first, 0
        while at < len(hashes):
            run = runs[hashes.item(at)]
            following, blocks = run.following, len(run.hashes)
            yield runs, run, at
            at += blocks
            runs = following

    def _along(self, hashes: Hashes) -> Iterator[tuple[_Run, int]]:
        """Yield the runs that a prompt has in common with others, and where that ends in each."""
        runs, at = self._first, 0
        while at < len(hashes):
            run = runs.get(hashes.item(at))
            if run is None:
                return
            blocks = _common(run.hashes, hashes[at:])
            at += blocks
            yield run, at
            if blocks < len(run.hashes):
                return
            runs = run.following


def _common(one: Hashes, other: Hashes) -> int:
    """Return how many blocks two prompts begin with that are equal.

    Each is compared: who makes hashes collide gets a wrong count, and nothing comes apart.
    """
    count = min(len(one), len(other))
    differs = one[:count] != other[:count]
    at = int(differs.argmax())
    return at if differs[at] else count


def _less(counts: dict[int, int], row: int) -> bool:
    """Count one less; returns whether none is left."""
    left = counts[row] - 1
    if left:
        counts[row] = left
    else:
        del counts[row]
    return not left
