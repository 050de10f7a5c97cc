"""How busy each place is: this router's requests, its peers' and what the engine says.

A request counts from `started` to `finished`, on the place it was sent to, whatever happens to
that place meanwhile. In blocks, it has those of its prompt, of which the ones that it shares with
other requests there count once, as vLLM keeps them once, and those of its answer so far.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.place_table import PlaceTable, Rows
from router.prompt_tree import PromptTree
from router.router import Active, BusyThresholds, LoadReported, PeerLoad, Place, WorkerJoined
from wire.block_hash import Hashes

Floats = NDArray[np.float64]

_BLOCKS, _PREFILL, _REQUESTS = range(3)


@dataclass(slots=True)
class _Running:
    place: Place
    row: int
    hashes: Hashes
    tokens: int  # of prompt and answer
    own_blocks: int  # beside those of `hashes`
    cached_blocks: int
    prefill_tokens: int


class Load:
    """Load by row of `table`, which this gives its rows.

    With `counted` = blocks of this router's and its peers' requests on a place,

        active = counted + unseen
        unseen = max(0, usage * capacity * (running + waiting) / running - counted), at a report

    so that at the moment of a report active = max(counted, what the engine has), and from then on
    it follows every start, token and end, where the engine's word alone would be late by a report.
    Requests that wait in the engine hold no blocks yet and will want as many as those that run;
    what they want is `unseen` only as far as nobody here counts it. Of a place that has not
    reported, `unseen` is taken for the mean of those that have: unknown is not idle. Every call
    takes O(1), or at a request's start and end O(prompts that its own one parts from).
    """

    def __init__(self, table: PlaceTable, block_size: int) -> None:
        self._table = table
        self._block_size = block_size
        self._own = np.zeros((3, 0), np.int64)
        self._all = np.zeros((3, 0), np.int64)  # own and peers' together
        self._unseen = np.zeros(0)
        self._untold: set[int] = set()  # rows of members that have not reported
        self._capacity = np.zeros(0)
        self._running: dict[str, _Running] = {}
        self._prompts = PromptTree()
        self._peer_loads: dict[str, dict[Place, Active]] = {}

    def joined(self, event: WorkerJoined) -> None:
        """A worker's ranks are members, each with a row; nothing is known of the engine's load."""
        places = [Place(event.worker_id, rank) for rank in range(event.ranks)]
        rows = tuple(self._row(place) for place in places)
        self._table.join(event, rows)
        for place, row in zip(places, rows, strict=True):
            self._capacity[row] = self._table.kv_blocks(place)
            self._unseen[row] = 0.0
            self._untold.add(row)

    def left(self, worker_id: str) -> list[Place]:
        """A worker's ranks are members no more; returns them. What runs there still counts."""
        places = self._table.leave(worker_id)
        for place in places:
            row = self._table.row(place)
            assert row is not None
            self._untold.discard(row)
            self._unseen[row] = 0.0
            self._release_unused(place)
        return places

    def reported(self, event: LoadReported) -> None:
        """Take the engine's word; without a known capacity it says nothing in blocks."""
        row = self._table.row(event.place)
        if row is None or not self._capacity[row] or not self._table.is_member(event.place):
            return
        wanted = min(1.0, max(0.0, event.kv_usage)) * float(self._capacity[row])
        if event.running > 0:
            wanted *= (event.running + max(0, event.waiting)) / event.running
        self._unseen[row] = max(0.0, wanted - float(self._all[_BLOCKS, row]))
        self._untold.discard(row)

    def peer(self, event: PeerLoad) -> None:
        """Replace what is known of another router's requests."""
        before = self._peer_loads.pop(event.peer_id, {})
        if event.active:
            self._peer_loads[event.peer_id] = dict(event.active)
        for place in before.keys() | event.active.keys():
            row = self._table.row(place)
            if row is not None:
                self._all[:, row] = self._own[:, row] + self._of_peers(place)

    def started(
        self, request_id: str, place: Place, *, tokens: int, hashes: Hashes, cached_blocks: int
    ) -> None:
        """A request with a prompt of `tokens` runs on `place`, which has `cached_blocks` of it."""
        self.finished(request_id)
        row = self._row(place)
        running = _Running(
            place=place,
            row=row,
            hashes=hashes,
            tokens=tokens,
            own_blocks=-(-tokens // self._block_size) - len(hashes),
            cached_blocks=cached_blocks,
            prefill_tokens=max(0, tokens - cached_blocks * self._block_size),
        )
        self._running[request_id] = running
        known = cached_blocks if running.prefill_tokens else len(hashes)
        blocks = self._prompts.add(row, hashes, known)
        self._add(_BLOCKS, row, blocks + running.own_blocks)
        self._add(_PREFILL, row, running.prefill_tokens)
        self._add(_REQUESTS, row, 1)

    def advanced(self, request_id: str, tokens: int) -> None:
        """A request has `tokens` more; its prompt is computed. Unknown ones are ignored."""
        running = self._running.get(request_id)
        if running is None:
            return
        self._computed(running)
        running.tokens += tokens
        more = -(-running.tokens // self._block_size) - len(running.hashes) - running.own_blocks
        if more > 0:
            self._add(_BLOCKS, running.row, more)
            running.own_blocks += more

    def finished(self, request_id: str) -> None:
        """A request is over. Unknown ones are ignored."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        row = running.row
        self._computed(running)
        blocks = self._prompts.remove(row, running.hashes)
        self._add(_BLOCKS, row, -blocks - running.own_blocks)
        self._add(_REQUESTS, row, -1)
        self._release_unused(running.place)

    def blocks(self, rows: Rows) -> Floats:
        """Active blocks, float64 [len(rows)]."""
        unseen = self._unseen[rows]
        if self._untold:
            told = np.array([row not in self._untold for row in rows.tolist()], np.bool_)
            unseen[~told] = unseen[told].mean() if told.any() else 0.0
        unseen += self._all[_BLOCKS][rows]
        return unseen

    def shared(self, row: int, hashes: Hashes) -> tuple[int, int]:
        """What of a prompt's first blocks running requests have in use, and are to compute."""
        return self._prompts.shared(row, hashes)

    def prefill_tokens(self, rows: Rows) -> NDArray[np.int64]:
        """Prompt tokens that are not computed yet, int64 [len(rows)]."""
        tokens: NDArray[np.int64] = self._all[_PREFILL][rows]
        return tokens

    def busy(self, rows: Rows, thresholds: BusyThresholds) -> NDArray[np.bool_]:
        """Which rows are above a threshold, bool [len(rows)].

        Where the capacity is unknown, `active_decode_blocks` is no threshold.
        """
        busy = np.zeros(len(rows), np.bool_)
        if thresholds.active_decode_blocks is not None:
            capacity = self._capacity[rows]
            most = thresholds.active_decode_blocks * capacity
            busy |= (capacity > 0) & (self.blocks(rows) > most)
        if thresholds.active_prefill_tokens is not None:
            busy |= self.prefill_tokens(rows) > thresholds.active_prefill_tokens
        return busy

    def active(self) -> dict[Place, Active]:
        """What this router has running, places without requests left out."""
        return {
            self._table.place(row): Active(*self._own[:, row].tolist())
            for row in np.flatnonzero(self._own[_REQUESTS]).tolist()
        }

    def _add(self, kind: int, row: int, amount: int) -> None:
        self._own[kind, row] += amount
        self._all[kind, row] += amount

    def _computed(self, running: _Running) -> None:
        if running.prefill_tokens:
            self._add(_PREFILL, running.row, -running.prefill_tokens)
            running.prefill_tokens = 0
            self._prompts.computed(running.row, running.hashes, running.cached_blocks)

    def _row(self, place: Place) -> int:
        row = self._table.row(place)
        if row is None:
            row = self._table.give_row(place)
            if row >= len(self._unseen):
                self._grow(row)
            self._all[:, row] = self._of_peers(place)
            self._unseen[row] = self._capacity[row] = 0.0
        return row

    def _grow(self, row: int) -> None:
        more = max(16, row)
        self._own = np.pad(self._own, ((0, 0), (0, more)))
        self._all = np.pad(self._all, ((0, 0), (0, more)))
        self._unseen = np.pad(self._unseen, (0, more))
        self._capacity = np.pad(self._capacity, (0, more))

    def _release_unused(self, place: Place) -> None:
        row = self._table.row(place)
        if row is None or self._own[_REQUESTS, row] or self._table.is_member(place):
            return
        self._table.release(place)

    def _of_peers(self, place: Place) -> NDArray[np.int64]:
        loads = [load[place] for load in self._peer_loads.values() if place in load]
        total: NDArray[np.int64] = np.array(loads, np.int64).reshape(-1, 3).sum(axis=0)
        return total
