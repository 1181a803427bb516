"""From the sums of groups to their figures: many groups at once, several batches side by side.

The arithmetic of a batch lets go of the interpreter's lock, and its calls are few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.reduce.figures import STACK_BYTES, Figures, GroupSums, Times, figures
from pipeline.reduce.groups import Key
from pipeline.reduce.sub_paths import NO_PARTS, Parts

OfGroups = tuple[Sequence[int], GroupSums | None]
"""Numbers of groups that hold the same parts, and their sums; None if nothing is known of them."""


@dataclass(frozen=True, eq=False, slots=True)
class FigureBatch:
    """The figures of some groups, of which several may be the same weights."""

    numbers: NDArray[np.int32]
    """(R,) of the groups."""
    keys: list[Key]
    """What each of them is."""
    rows: NDArray[np.int64]
    """(R,) where the figures of each are among `figures`."""
    figures: Figures

    @property
    def rows_or_all(self) -> NDArray[np.int64] | slice:
        """What `rows` selects, without a copy where that is every figure once."""
        each_once = np.array_equal(self.rows, np.arange(len(self.figures.known)))
        return slice(None) if each_once else self.rows

    @property
    def paths(self) -> tuple[FigureBatch, ...]:
        """Return, of several paths, the figures of the same groups of each alone."""
        return tuple(
            FigureBatch(self.numbers, self.keys, self.rows, each) for each in self.figures.paths
        )


def figure_batches(
    sums: Iterable[OfGroups],
    keys: Sequence[Key],
    times: Times,
    basis: Basis,
    threads: int,
    batch_bytes: int = STACK_BYTES,
    parts: Parts = NO_PARTS,
    in_parts: Sequence[bool] | None = None,
) -> Iterator[FigureBatch]:
    """Yield the figures of every group, in the order of the sums.

    At most two batches a thread are held at once, be there as many groups as may be.

    Args:
        sums: the groups of the same weights, and the sums over these; None if they were lost.
        keys: what each group is, by its number.
        threads: batches worked on side by side; decides nothing about the figures, like the next.
        batch_bytes: of the sums of groups whose figures are made together.
        parts: of paths, that are looked at by themselves.
        in_parts: of which groups, by their numbers; default: of none.
    """
    pending: deque[tuple[list[OfGroups], Future[Figures]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="figures") as pool:
        for batch in _batches(sums, basis.count, batch_bytes):
            groups = [group_sums for _, group_sums in batch]
            looked_at = in_parts and [any(in_parts[n] for n in numbers) for numbers, _ in batch]
            pending.append((batch, pool.submit(figures, groups, times, basis, parts, looked_at)))
            if len(pending) >= 2 * threads:
                yield _batch(keys, *pending.popleft())
        while pending:
            yield _batch(keys, *pending.popleft())


def _batch(keys: Sequence[Key], sums: Sequence[OfGroups], future: Future[Figures]) -> FigureBatch:
    rows = np.repeat(np.arange(len(sums)), [len(groups) for groups, _ in sums])
    numbers = [group for groups, _ in sums for group in groups]
    of_groups = [keys[group] for group in numbers]
    return FigureBatch(np.array(numbers, np.int32), of_groups, rows, future.result())


def _batches(sums: Iterable[OfGroups], count: int, batch_bytes: int) -> Iterator[list[OfGroups]]:
    batch: list[OfGroups] = []
    size = 0
    for groups, group_sums in sums:
        if not groups:
            continue
        batch.append((groups, group_sums))
        size += 8 * count**2 * (1 if group_sums is None else 1 + len(group_sums.changes))
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
