"""The scales of one tensor at one checkpoint: which of them some of its elements need, and where they lie."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.stored import Extent, Scales

ALIGNMENT = 8
"""In bytes, of the widest number, of what lies in a block behind codes."""


class AlignedScales(NamedTuple):
    """Scales, one for each block of a tensor, in files of the plan."""

    dtype: str
    extents: tuple[Extent, ...]
    """Where they lie; files are indexes into the plan's."""
    shape: tuple[int, ...]
    """How many there are, in as many dimensions as the tensor has."""
    blocks: tuple[int, ...]
    """Elements of each dimension that share a scale."""
    of: tuple[int, ...]
    """Shape of the tensor."""
    factor: float = 1.0
    """What all of them are multiplied with."""
    scales: AlignedScales | None = None
    """Scales of the scales, which these are multiplied with."""
    divide: bool = False
    """They are divided by those instead."""

    def needed(self, first: int, stop: int) -> tuple[int, int]:
        """Return [first, stop) of the scales that the elements [first, stop) of the tensor need."""
        if not self.shape:
            return 0, 1
        columns, of_row = self.of[-1], self.shape[-1]
        if not self.is_in_order:
            return 0, math.prod(self.shape)
        (row, column), (last_row, last) = divmod(first, columns), divmod(stop - 1, columns)
        begin, end = self._row(row) * of_row, self._row(last_row) * of_row
        if row != last_row and any(block > 1 for block in self.blocks[:-1]):
            return (
                begin,
                end + of_row,
            )  # what one row does not need of its scales, the next one does
        return begin + column // self.blocks[-1], end + last // self.blocks[-1] + 1

    def num_bytes(self, first: int, stop: int) -> int:
        """Return the size of the scales that the elements [first, stop) need, with what is above them."""
        begin, end = self.needed(first, stop)
        size = (end - begin) * DTYPES[self.dtype].itemsize
        return size if self.scales is None else aligned(size) + self.scales.num_bytes(begin, end)

    def most_bytes(self, numel: int) -> int:
        """Return the most that the scales of so many elements take, wherever they begin."""
        count = math.prod(self.shape)
        if self.shape and self.is_in_order:
            rows = numel // self.of[-1] + 2
            if len(self.of) > 1:  # rows of one matrix share scales, those of two do not
                rows = rows // self.blocks[-2] + 2 * (rows // self.of[-2] + 2)
            count = min(count, rows * self.shape[-1])
        size = count * DTYPES[self.dtype].itemsize
        return size if self.scales is None else aligned(size) + self.scales.most_bytes(count)

    def reads(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (file, first byte, byte past the last, where it goes) of what the elements [first, stop) need.

        What is above the scales goes behind them, as in `num_bytes`.
        """
        begin, end = self.needed(first, stop)
        size = DTYPES[self.dtype].itemsize
        number = bisect.bisect_right(self.extents, begin, key=lambda extent: extent.first) - 1
        reached = begin
        while reached < end:
            extent = self.extents[number]
            number += 1
            last = number == len(self.extents)
            until = end if last else min(end, self.extents[number].first)
            start = extent.start + (reached - extent.first) * size
            yield extent.file, start, start + (until - reached) * size, (reached - begin) * size
            reached = until
        if self.scales is not None:
            behind = aligned((end - begin) * size)
            for file, start, past, offset in self.scales.reads(begin, end):
                yield file, start, past, behind + offset

    def files(self) -> set[int]:
        """Return the files that any of them lie in."""
        above = self.scales.files() if self.scales else set[int]()
        return {extent.file for extent in self.extents} | above

    def indexes(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return which of the scales from `needed` each of the elements [first, stop) has, (M,)."""
        begin, _ = self.needed(first, stop)
        if not self.shape:
            return np.zeros(stop - first, np.int64)
        rows, places = np.divmod(np.arange(first, stop), self.of[-1])
        indexes, step = places // self.blocks[-1], self.shape[-1]
        for length, block, count in self._leading():
            rows, places = np.divmod(rows, length)
            indexes += places // block * step
            step *= count
        return indexes - begin

    def _leading(self) -> Iterator[tuple[int, int, int]]:
        """Yield length, block and number of scales of each dimension but the last, from behind."""
        return zip(self.of[-2::-1], self.blocks[-2::-1], self.shape[-2::-1], strict=True)

    @property
    def is_in_order(self) -> bool:
        """True if rows that follow each other need scales that do, too."""
        shared = [d for d, block in enumerate(self.blocks[:-1]) if block > 1]
        return not shared or math.prod(self.shape[shared[0] + 1 : -1]) == 1

    def _row(self, row: int) -> int:
        """Return which row of scales a row of the tensor has, all dimensions but the last taken as one."""
        of_scales, step = 0, 1
        for length, block, count in self._leading():
            row, place = divmod(row, length)
            of_scales += place // block * step
            step *= count
        return of_scales


def aligned_scales(
    scales: Scales, of: tuple[int, ...], numbers: Sequence[int], file: int
) -> AlignedScales:
    """Return scales with their files' numbers in the plan, given those of the checkpoint.

    Args:
        of: the tensor's shape.
        file: the tensor's file among those of the checkpoint.
    """
    listed = file + scales.file
    extents = scales.extents or (Extent(0, 0, scales.start),)
    in_plan = tuple(e._replace(file=numbers[listed + e.file]) for e in extents)
    above = scales.scales and aligned_scales(scales.scales, scales.shape, numbers, file)
    return AlignedScales(
        scales.dtype, in_plan, scales.shape, scales.blocks, of, scales.factor, above, scales.divide
    )


def aligned(num_bytes: int) -> int:
    """Return a size with what is skipped before the next thing."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
