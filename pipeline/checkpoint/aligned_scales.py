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

    def needed(self, first: int, stop: int) -> tuple[int, int]:
        """Return [first, stop) of the scales that the elements [first, stop) of the tensor need."""
        if not self.shape:
            return 0, 1
        columns, of_row = self.of[-1], self.shape[-1]
        if not self.is_in_order:
            return 0, math.prod(self.shape)
        return self._row(first // columns) * of_row, (self._row((stop - 1) // columns) + 1) * of_row

    def num_bytes(self, first: int, stop: int) -> int:
        """Return the size of the scales that the elements [first, stop) need."""
        begin, end = self.needed(first, stop)
        return (end - begin) * DTYPES[self.dtype].itemsize

    def places(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (file, first byte, byte past the last, scales from `begin`) of the scales [begin, end)."""
        size = DTYPES[self.dtype].itemsize
        number = bisect.bisect_right(self.extents, begin, key=lambda extent: extent.first) - 1
        reached = begin
        while reached < end:
            extent = self.extents[number]
            number += 1
            last = number == len(self.extents)
            until = end if last else min(end, self.extents[number].first)
            start = extent.start + (reached - extent.first) * size
            yield extent.file, start, start + (until - reached) * size, reached - begin
            reached = until

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
    return AlignedScales(scales.dtype, in_plan, scales.shape, scales.blocks, of)
