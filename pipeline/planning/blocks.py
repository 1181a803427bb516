"""Blocks: how much of a tile is in memory at once.

A block is a table of bytes with one row per checkpoint. Every tensor range takes the same columns in
all rows, as many as its widest stored format needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.aligned_scales import ALIGNMENT, aligned
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES, PackedDType
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import TensorRange, Tile, cut_alike
from pipeline.statistics.pieces import PIECE

ROW_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PlacedRange:
    """A tensor range and the first column of its bytes in the block."""

    range: TensorRange
    column: int
    width: int
    """Bytes of one element in the widest format that a checkpoint has it in, once unpacked."""
    packed: int = 0
    """The first column of its codes as stored, where some checkpoints pack them."""
    scales: int = 0
    """The first column of the scales that it needs, where it has some."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Where tensor ranges lie in a block."""

    ranges: tuple[PlacedRange, ...]
    row_bytes: int


def width(tensor: AlignedTensor) -> int:
    """Return the size in bytes of one element in the tensor's widest format, once unpacked."""
    return max(WEIGHT_DTYPES[dtype].itemsize for dtype in set(tensor.dtypes))


def most_beside(tensor: AlignedTensor, numel: int) -> int:
    """Return the bytes of a row that so many elements need behind them, wherever they begin."""
    if not tensor.scales:
        return 0
    packed = max((dtype.reach(1, numel + 1)[1] for dtype in _packed(tensor)), default=0)
    scales = max(each.most_bytes(numel) for each in tensor.scales.values())
    return aligned(1) + aligned(packed) + scales


def _beside(tensor: AlignedTensor, first: int, stop: int) -> tuple[int, int]:
    """Return the bytes that packed codes and scales of the elements [first, stop) take in a row."""
    packed = 0
    for dtype in _packed(tensor):
        begin, end = dtype.reach(first, stop)
        packed = max(packed, end - begin)
    return packed, max(each.num_bytes(first, stop) for each in tensor.scales.values())


def _packed(tensor: AlignedTensor) -> list[PackedDType]:
    dtypes = (WEIGHT_DTYPES[dtype] for dtype in set(tensor.dtypes))
    return [dtype for dtype in dtypes if isinstance(dtype, PackedDType)]


def piece_bytes(tensors: Sequence[AlignedTensor]) -> int:
    """Return the bytes of a row that hold one piece of any tensor, and of those that share its bytes."""
    of_one = [width(tensor) * PIECE + most_beside(tensor, PIECE) for tensor in tensors]
    most = max(of_one)
    for first in {tensor.twin.name for tensor in tensors if tensor.twin and tensor.twin.filled}:
        alike = [
            of_one[n] + ALIGNMENT
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
    `piece_bytes`. Behind their range lie codes as stored, where they are packed, and scales.
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
        packed = scales = 0
        end = column + (stop - first) * size
        if tensor.scales and stop > first:
            of_packed, of_scales = _beside(tensor, first, stop)
            packed = aligned(end)
            scales = aligned(packed + of_packed)
            end = scales + of_scales
        part = replace(range_, first=first, stop=stop)
        added.append(PlacedRange(part, column, size, packed, scales))
        column = end
    return added, column


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
