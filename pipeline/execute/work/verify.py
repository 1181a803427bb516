"""Whole files against the hashes that the Hub publishes, from the bytes that tiles read anyway.

A hash wants a file's bytes in order. So tiles are taken in the order of the plan, which is that of
the first checkpoint's files, and one tile is hashed after the other while the next ones are read
ahead. What no tile reads (headers, excluded tensors, what another worker or an earlier attempt read)
is read for the hash alone. Each worker hashes its share of the files: one alone reads nothing twice,
several read a file at most twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import Corrupted
from pipeline.planning.plan import Plan

_READ_BYTES = 1 << 18  # of what is read for the hash alone: 32 readers hold 8 MiB

Read = Callable[[int, int, memoryview], None]
"""Fill a buffer from a byte of a file, given by number, on."""


def published(plan: Plan) -> list[int]:
    """Return the files whose hash a repository publishes, by number."""
    return [number for number, file in enumerate(plan.files) if file.digest() is not None]


@dataclass
class _Hashed:
    """A file's hash so far: of its first `done` bytes."""

    digest: Any
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Place:
    """One tile's place in the order of hashing."""

    def __init__(self, order: _Order, position: int) -> None:
        self._order, self._position = order, position

    def wait(self) -> None:
        """Return when all tiles before have been hashed, or have failed."""
        with self._order.changed:
            self._order.changed.wait_for(lambda: self._order.current >= self._position)


class _Order:
    def __init__(self) -> None:
        self.current = 0
        """Position of the first tile that is not over."""
        self.changed = threading.Condition()
        self._over: set[int] = set()

    @contextmanager
    def place(self, position: int) -> Iterator[Place]:
        """Give a tile its place; it is over when the context ends."""
        try:
            yield Place(self, position)
        finally:
            with self.changed:
                self._over.add(position)
                while self.current in self._over:
                    self._over.remove(self.current)
                    self.current += 1
                self.changed.notify_all()


class Verifier:
    """Hashes of some of a plan's files. Safe in threads."""

    def __init__(self, plan: Plan, files: Sequence[int], read: Read) -> None:
        self._plan, self._read = plan, read
        self._hashed = {number: _Hashed(plan.files[number].digest()) for number in files}
        self.order = _Order()

    def take(self, file: int, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """Go on with a file from byte ranges of it that have been read, given in order."""
        hashed = self._hashed.get(file)
        if hashed is None:
            return
        with hashed.lock:
            for start, buffer in ranges:
                if start + len(buffer) > hashed.done:
                    self._catch_up(file, hashed, start)
                    hashed.digest.update(buffer[hashed.done - start :])
                    hashed.done = start + len(buffer)

    def finish(self, file: int) -> None:
        """Read what is left of a file and compare.

        Raises:
            Corrupted: the bytes are not those that were published.
        """
        hashed, planned = self._hashed[file], self._plan.files[file]
        with hashed.lock:
            self._catch_up(file, hashed, planned.size)
            digest = hashed.digest.hexdigest()
        if digest != planned.identity:
            raise Corrupted(
                f"{planned.where}: expected contents with the hash {planned.identity}, found {digest}",
                "start again; if it stays, the file is damaged where it is stored",
            )

    @property
    def files(self) -> list[int]:
        """The files that are hashed here."""
        return list(self._hashed)

    def _catch_up(self, file: int, hashed: _Hashed, stop: int) -> None:
        """Read what lies between what was hashed and `stop`."""
        buffer = memoryview(bytearray(min(_READ_BYTES, max(0, stop - hashed.done))))
        while hashed.done < stop:
            read = buffer[: stop - hashed.done]
            self._read(file, hashed.done, read)
            hashed.digest.update(read)
            hashed.done += len(read)
