"""From the sums of groups to their figures: many groups at once, several batches side by side.

The arithmetic of a batch lets go of the interpreter's lock, and its calls are few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.numerics.basis import Basis
from pipeline.reduce.figures import STACK_BYTES, Figures, GroupSums, Times, figures
from pipeline.reduce.groups import Key

_Sums = tuple[list[Key], GroupSums | None]


@dataclass(frozen=True, eq=False, slots=True)
class FigureBatch:
    """The figures of some groups, of which several may be the same weights."""

    keys: list[Key]
    """R groups."""
    rows: np.ndarray
    """(R,) where the figures of each are among `figures`."""
    figures: Figures

    @property
    def paths(self) -> tuple[FigureBatch, ...]:
        """Return, of several paths, the figures of the same groups of each alone."""
        return tuple(FigureBatch(self.keys, self.rows, each) for each in self.figures.paths)


def figure_batches(
    sums: Iterable[_Sums], times: Times, basis: Basis, threads: int
) -> Iterator[FigureBatch]:
    """Yield the figures of every group, in the order of the sums.

    At most two batches a thread are held at once, be there as many groups as may be.

    Args:
        sums: the groups of the same weights, and the sums over these; None if they were lost.
        threads: batches worked on side by side; decides nothing about the figures.
    """
    pending: deque[tuple[list[_Sums], Future[Figures]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="figures") as pool:
        for batch in _batches(sums, basis.count):
            groups = [found for _, found in batch]
            pending.append((batch, pool.submit(figures, groups, times, basis)))
            if len(pending) >= 2 * threads:
                yield _batch(*pending.popleft())
        while pending:
            yield _batch(*pending.popleft())


def _batch(sums: Sequence[_Sums], future: Future[Figures]) -> FigureBatch:
    rows = np.repeat(np.arange(len(sums)), [len(keys) for keys, _ in sums])
    return FigureBatch([key for keys, _ in sums for key in keys], rows, future.result())


def _batches(sums: Iterable[_Sums], count: int) -> Iterator[list[_Sums]]:
    batch: list[_Sums] = []
    size = 0
    for keys, found in sums:
        if not keys:
            continue
        batch.append((keys, found))
        size += 8 * count**2 * (1 if found is None else 1 + len(found.changes))
        if size >= STACK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
