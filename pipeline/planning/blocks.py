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
SCALE_ALIGNMENT = 8
"""Of the widest number."""


@dataclass(frozen=True, slots=True)
class PlacedRange:
    """A tensor range and the first column of its bytes in the block."""

    range: TensorRange
    column: int
    width: int
    """Bytes of one element in the widest format that a checkpoint stores it in."""
    scales: int = 0
    """The first column of the scales that it needs, where it has some."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Where tensor ranges lie in a block."""

    ranges: tuple[PlacedRange, ...]
    row_bytes: int


def width(tensor: AlignedTensor) -> int:
    """Return the size in bytes of one element in the tensor's widest stored format."""
    return max(DTYPES[dtype].itemsize for dtype in set(tensor.dtypes))


def scale_bytes(tensor: AlignedTensor, first: int, stop: int) -> int:
    """Return the bytes of a row that hold the scales of the elements [first, stop), if it has some."""
    return max((each.num_bytes(first, stop) for each in tensor.scales.values()), default=0)


def most_scale_bytes(tensor: AlignedTensor, numel: int) -> int:
    """Return the bytes of a row that hold the scales of so many elements, wherever they begin."""
    most = 0
    for scales in tensor.scales.values():
        rows = numel // max(1, tensor.shape[-1] if tensor.shape else 1) + 2
        of_row = scales.shape[-1] if scales.shape else 1
        whole = scales.num_bytes(0, tensor.numel)
        if scales.is_in_order:
            whole = min(whole, rows * of_row * DTYPES[scales.dtype].itemsize)
        most = max(most, whole + SCALE_ALIGNMENT)
    return most


def block_layouts(
    tile: Tile, tensors: Sequence[AlignedTensor], row_bytes: int
) -> Iterator[BlockLayout]:
    """Yield the layouts of a tile's blocks, in order, with rows of at most `row_bytes`.

    Tensor ranges are cut at multiples of PIECE only; `row_bytes` must hold one piece, and its scales. They
    lie behind their range.
    """
    ranges: list[PlacedRange] = []
    column = 0
    for range_ in tile.ranges:
        tensor = tensors[range_.tensor]
        size = width(tensor)
        first = range_.first
        while first < range_.stop:
            column = -(-column // size) * size
            room = (row_bytes - column) // size
            stop = min(range_.stop, (first + room) // PIECE * PIECE) if room > 0 else first
            if range_.stop - first <= room:
                stop = range_.stop
            scales = column + (stop - first) * size
            if tensor.scales:
                while stop > first:
                    scales = (
                        -(-(column + (stop - first) * size) // SCALE_ALIGNMENT) * SCALE_ALIGNMENT
                    )
                    if scales + scale_bytes(tensor, first, stop) <= row_bytes:
                        break
                    stop = (stop - 1) // PIECE * PIECE
            if stop <= first:
                yield BlockLayout(tuple(ranges), _aligned(column))
                ranges, column = [], 0
                continue
            part = replace(range_, first=first, stop=stop)
            ranges.append(PlacedRange(part, column, size, scales if tensor.scales else 0))
            column = scales + scale_bytes(tensor, first, stop)
            first = stop
    if ranges:
        yield BlockLayout(tuple(ranges), _aligned(column))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
