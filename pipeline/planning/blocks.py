"""Blocks: how much of a tile is in memory at once.

A block is a table of bytes with one row per checkpoint. Every tensor range takes the same columns in
all rows, as many as its widest stored format needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import TensorRange, Tile
from pipeline.statistics.pieces import PIECE

ROW_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PlacedRange:
    """A tensor range and the first column of its bytes in the block."""

    range: TensorRange
    column: int
    width: int
    """Bytes of one element in the widest format that a checkpoint stores it in."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Where tensor ranges lie in a block."""

    ranges: tuple[PlacedRange, ...]
    row_bytes: int


def width(tensor: AlignedTensor) -> int:
    """Return the size in bytes of one element in the tensor's widest stored format."""
    return max(DTYPES[dtype].itemsize for dtype in set(tensor.dtypes))


def block_layouts(
    tile: Tile, tensors: Sequence[AlignedTensor], row_bytes: int
) -> Iterator[BlockLayout]:
    """Yield the layouts of a tile's blocks, in order, with rows of at most `row_bytes`.

    Tensor ranges are cut at multiples of PIECE only; `row_bytes` must hold one piece.
    """
    ranges: list[PlacedRange] = []
    column = 0
    for range_ in tile.ranges:
        size = width(tensors[range_.tensor])
        first = range_.first
        while first < range_.stop:
            column = -(-column // size) * size
            room = (row_bytes - column) // size
            stop = min(range_.stop, (first + room) // PIECE * PIECE) if room > 0 else first
            if range_.stop - first <= room:
                stop = range_.stop
            if stop <= first:
                yield BlockLayout(tuple(ranges), _aligned(column))
                ranges, column = [], 0
                continue
            ranges.append(PlacedRange(replace(range_, first=first, stop=stop), column, size))
            column += (stop - first) * size
            first = stop
    if ranges:
        yield BlockLayout(tuple(ranges), _aligned(column))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
