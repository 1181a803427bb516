"""Blocks: how much of a tile is in memory at once.

A block is a table of bytes with one row per checkpoint. Every tensor range takes the same columns in
all rows, as many as its widest stored format needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import TensorRange, Tile, cut_alike
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


def piece_bytes(tensors: Sequence[AlignedTensor]) -> int:
    """Return the bytes of a row that hold one piece of any tensor, and of those that share its bytes."""
    of_one = [width(tensor) * PIECE + most_scale_bytes(tensor, PIECE) for tensor in tensors]
    most = max(of_one)
    for first in {tensor.twin.name for tensor in tensors if tensor.twin and tensor.twin.filled}:
        alike = [
            of_one[n] + SCALE_ALIGNMENT
            for n, tensor in enumerate(tensors)
            if tensor.name == first or (tensor.twin and tensor.twin.name == first)
        ]
        most = max(most, sum(alike))
    return most


def block_layouts(
    tile: Tile, tensors: Sequence[AlignedTensor], row_bytes: int
) -> Iterator[BlockLayout]:
    """Yield the layouts of a tile's blocks, in order, with rows of at most `row_bytes`.

    Tensor ranges are cut at multiples of PIECE only, those that share bytes alike; `row_bytes` must hold
    `piece_bytes`. Scales lie behind their range.
    """
    ranges: list[PlacedRange] = []
    column = 0
    for alike in cut_alike(tile.ranges, tensors):
        first, last = alike[0].first, alike[0].stop
        size = sum(width(tensors[range_.tensor]) for range_ in alike)
        while first < last:
            room = max(0, row_bytes - column) // size
            stop = last if last - first <= room else (first + room) // PIECE * PIECE
            added, end = _laid_out(alike, first, stop, column, tensors)
            while stop > first and end > row_bytes:
                stop = (stop - 1) // PIECE * PIECE
                added, end = _laid_out(alike, first, stop, column, tensors)
            if stop <= first:
                yield BlockLayout(tuple(ranges), _aligned(column))
                ranges, column = [], 0
                continue
            ranges += added
            first, column = stop, end
    if ranges:
        yield BlockLayout(tuple(ranges), _aligned(column))


def _laid_out(
    alike: Sequence[TensorRange],
    first: int,
    stop: int,
    column: int,
    tensors: Sequence[AlignedTensor],
) -> tuple[list[PlacedRange], int]:
    """Return where [first, stop) of some ranges lies from a column on, and the column behind."""
    added: list[PlacedRange] = []
    for range_ in alike:
        tensor = tensors[range_.tensor]
        size = width(tensor)
        column = -(-column // size) * size
        scales = end = column + (stop - first) * size
        if tensor.scales:
            scales = -(-end // SCALE_ALIGNMENT) * SCALE_ALIGNMENT
            end = scales + scale_bytes(tensor, first, stop)
        part = replace(range_, first=first, stop=stop)
        added.append(PlacedRange(part, column, size, scales if tensor.scales else 0))
        column = end
    return added, column


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
