"""Which blocks may be on their way through the object stores at once.

Ray spills to disk what does not fit into a node's object store. So a block is pulled only while it
and all that were admitted before, each counted on the node that pulled it and on the node that wants
it, fill no more than half of the smallest store: even if all of them lie there, the other half takes
what Ray itself puts, and blocks that are done with: it frees what it has gathered once a second. Pure: no clock, no network, no Ray.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from pipeline.errors import HallmarksError
from pipeline.planning.memory import show_size

COPIES = 2
"""Of a block in flight: where it was pulled and where it is computed."""
SHARE = 0.5
"""Of the smallest object store. With 64 MiB blocks in stores of 400 MB three in flight spilled
nothing (a peak of 320 MiB in one store), 24 spilled 1,344 MiB."""


def largest_block(store_bytes: int) -> int:
    """Return the bytes of the largest block that the object store of a node takes."""
    return int(SHARE * store_bytes) // COPIES


class Admission:
    """Admits blocks in the order in which workers ask. A worker holds what it was admitted."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._held: Counter[int] = Counter()

    def ask(self, worker: int, number: int, num_bytes: int) -> None:
        """Take note that a worker wants a block of so many bytes; `number` is that of its request."""
        self._waiting.append((worker, number, num_bytes))

    def left(self, worker: int, num_bytes: int) -> None:
        """Take note that a block is gone."""
        self._held[worker] -= num_bytes

    def forget(self, worker: int) -> None:
        """Take note of a worker's death: its blocks go with it."""
        del self._held[worker]
        self._waiting = deque(asked for asked in self._waiting if asked[0] != worker)

    def admitted(self, store_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield whose requests are granted by now, the smallest store being of so many bytes.

        Raises:
            HallmarksError: a block is larger than fits: a smaller node has joined.
        """
        most = largest_block(store_bytes)
        while self._waiting:
            worker, number, num_bytes = self._waiting[0]
            if num_bytes > most:
                raise HallmarksError(
                    f"a block of {show_size(num_bytes)}, counted twice, does not fit into half of"
                    f" the smallest object store, {show_size(store_bytes)}",
                    "a smaller node has joined: start again, finished tiles are kept",
                )
            if self._held.total() + num_bytes > most:
                return
            self._waiting.popleft()
            self._held[worker] += num_bytes
            yield worker, number
