"""Which tile is next, and which is given up: the same for every executor."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import HallmarksError, SourceChanged, TileLost, TransientReadError

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Lost:
    """A tile that failed for good."""

    tile: int
    error: HallmarksError


class TileQueue:
    """Tiles to do, in order; those that may succeed next time come back at the end."""

    def __init__(self, tiles: Iterable[int]) -> None:
        self._waiting = deque(tiles)
        self._failures: Counter[int] = Counter()

    def take(self) -> int | None:
        """Return the next tile, or None."""
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, tile: int, error: HallmarksError) -> Lost | None:
        """Take note of a failure: the tile waits again, unless it is hopeless.

        Raises:
            SourceChanged: a file is not what was planned, and the rest of it may not be either.
        """
        if isinstance(error, SourceChanged):
            raise error
        self._failures[tile] += 1
        passing = isinstance(error, TransientReadError | TileLost)
        if passing and self._failures[tile] < MAX_ATTEMPTS:
            self._waiting.append(tile)
            return None
        return Lost(tile, error)
