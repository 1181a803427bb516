"""Whose tile is which, what comes next, and what is given up: the same for every executor.

Pure: no clock, no network, no Ray. Workers are numbers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import (
    DeviceFull,
    HallmarksError,
    SourceChanged,
    StoreFailed,
    TileLost,
    TransientReadError,
)
from pipeline.execute.work.receipt import Receipt

MAX_FAILURES = 3
"""Errors that a tile may end in, on whatever workers, before it is given up."""
MAX_DEATHS = 2
"""Workers that may die over a tile beside others; then it runs alone, and may die so as often."""
SLOW = 2.0
"""A tile that takes so many times as long as the others did is repeated by an idle worker."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A tile that failed for good."""

    tile: int
    error: HallmarksError


@dataclass
class _Held:
    """A worker's tiles: when each was handed over, and which of them it has begun."""

    since: dict[int, float] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    alone: bool = False
    """It holds a tile that may kill it, and gets no other beside."""


class Schedule:
    """Tiles to do, in order, and the workers that do them.

    A tile that failed in passing comes back at the end. A worker's death counts for the tiles that
    it had begun, and never exhausts a healthy one: after `MAX_DEATHS` a tile runs alone, so that
    only the tile that kills is given up. When nothing waits, idle workers repeat what takes long;
    the first result counts.
    """

    def __init__(self, tiles: Iterable[int], per_worker: int) -> None:
        """`per_worker`: tiles that a worker has in hand at once."""
        self._per_worker = per_worker
        self._waiting = deque(tiles)
        self._alone: deque[int] = deque()
        self._workers: dict[int, _Held] = {}
        self._free: dict[int, None] = {}  # workers with room, in turn
        self._copies: dict[int, int] = {}  # tiles in hand, oldest first → by how many workers
        self._failures: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._seconds, self._timed = 0.0, 0

    @property
    def over(self) -> bool:
        """True if every tile has a result or is lost; a repeated one may still be under way."""
        return not (self._waiting or self._alone or self._copies)

    def join(self, worker: int) -> None:
        """Take in a worker."""
        self._workers[worker] = _Held()
        self._free[worker] = None

    def tiles_of(self, worker: int) -> list[int]:
        """Return the tiles that a worker has in hand."""
        return list(self._workers[worker].since)

    def next(self, now: float) -> tuple[int, int] | None:
        """Return who does which tile next, or None: nothing waits, or nobody has room."""
        if self._waiting and self._free:
            worker = next(iter(self._free))
            return self._hand_over(worker, self._waiting.popleft(), now)
        if self._waiting:
            return None
        idle = next((w for w in self._free if not self._workers[w].since), None)
        if idle is None:
            return None
        if self._alone:
            self._workers[idle].alone = True
            return self._hand_over(idle, self._alone.popleft(), now)
        tile = self._slow_one(now)
        return None if tile is None else self._hand_over(idle, tile, now)

    def begun(self, worker: int, tile: int) -> None:
        """Take note that a worker is at a tile by now."""
        if worker in self._workers and tile in self._workers[worker].since:
            self._workers[worker].begun.add(tile)

    def done(self, worker: int, tile: int, now: float) -> bool:
        """Take note of a result; return False if the tile had one."""
        self._seconds += now - self._release(worker, tile)
        self._timed += 1
        return self._copies.pop(tile, None) is not None

    def ended(
        self, worker: int, tile: int, outcome: Receipt | HallmarksError, now: float
    ) -> Receipt | Lost | None:
        """Take note of a result or an error; return the tile's end, if this is it.

        Raises:
            SourceChanged, DeviceFull, StoreFailed: as `failed`.
        """
        if isinstance(outcome, HallmarksError):
            return self.failed(worker, tile, outcome)
        return outcome if self.done(worker, tile, now) else None

    def failed(self, worker: int, tile: int, error: HallmarksError) -> Lost | None:
        """Take note of an error: the tile waits again, unless it is hopeless.

        Raises:
            SourceChanged: a file is not what was planned, and the rest of it may not be either.
            DeviceFull: a GPU has no memory for this tile, nor for any other.
            StoreFailed: the store did not take its result, and will not take the next.
        """
        if isinstance(error, SourceChanged | DeviceFull | StoreFailed):
            raise error
        self._release(worker, tile)
        if not self._dropped(tile):
            return None
        self._failures[tile] += 1
        if isinstance(error, TransientReadError) and self._failures[tile] < MAX_FAILURES:
            self._waiting.append(tile)
            return None
        return Lost(tile, error)

    def leave(self, worker: int, why: str) -> list[Lost]:
        """Take note of a worker's death; return the tiles that are given up for it."""
        held = self._workers.pop(worker)
        self._free.pop(worker, None)
        lost = []
        for tile in held.since:
            if not self._dropped(tile):
                continue
            self._deaths[tile] += tile in held.begun
            if self._deaths[tile] >= 2 * MAX_DEATHS:
                times = self._deaths[tile]
                error = TileLost(f"tile {tile}: {why}, {times} times, {MAX_DEATHS} of them alone")
                lost.append(Lost(tile, error))
            elif self._deaths[tile] >= MAX_DEATHS:
                self._alone.append(tile)
            else:
                self._waiting.appendleft(tile)
        return lost

    def _hand_over(self, worker: int, tile: int, now: float) -> tuple[int, int]:
        held = self._workers[worker]
        held.since[tile] = now
        self._copies[tile] = self._copies.get(tile, 0) + 1
        del self._free[worker]
        if len(held.since) < self._per_worker and not held.alone:
            self._free[worker] = None  # at the end: one each in turn
        return worker, tile

    def _release(self, worker: int, tile: int) -> float:
        """Take a tile from a worker; return since when it had it."""
        held = self._workers[worker]
        held.begun.discard(tile)
        held.alone = False
        self._free[worker] = None
        return held.since.pop(tile)

    def _dropped(self, tile: int) -> bool:
        """Return True if nobody has the tile any more, and it has no result."""
        if tile not in self._copies:
            return False
        self._copies[tile] -= 1
        if self._copies[tile]:
            return False
        del self._copies[tile]
        return True

    def _slow_one(self, now: float) -> int | None:
        """Return the oldest tile in hand, if it takes long and nobody repeats it yet."""
        for tile, copies in self._copies.items():
            if copies == 1 and self._timed and self._deaths[tile] < MAX_DEATHS:
                since = next(h.since[tile] for h in self._workers.values() if tile in h.since)
                slow = now - since > SLOW * self._seconds / self._timed
                return tile if slow else None
        return None
