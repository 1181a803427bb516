"""Blocks: how much of a tile is in memory at once.

A block is a table of bytes with one row per checkpoint. Every tensor range takes the same columns in
all rows, as many as its widest stored format needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.aligned_scales import aligned
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES, PackedDType
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


def block_layouts(
    tile: Tile, tensors: Sequence[AlignedTensor], row_bytes: int
) -> Iterator[BlockLayout]:
    """Yield the layouts of a tile's blocks, in order, with rows of at most `row_bytes`.

    Tensor ranges are cut at multiples of PIECE only; `row_bytes` must hold one piece, and what lies behind
    its range: codes as stored where they are packed, and scales.
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
            packed = scales = 0
            end = column + (stop - first) * size
            while tensor.scales and stop > first:
                packed = aligned(column + (stop - first) * size)
                of_packed, of_scales = _beside(tensor, first, stop)
                scales = aligned(packed + of_packed)
                end = scales + of_scales
                if end <= row_bytes:
                    break
                stop = (stop - 1) // PIECE * PIECE
            if stop <= first:
                yield BlockLayout(tuple(ranges), _aligned(column))
                ranges, column = [], 0
                continue
            part = replace(range_, first=first, stop=stop)
            ranges.append(PlacedRange(part, column, size, packed, scales))
            column = end
            first = stop
    if ranges:
        yield BlockLayout(tuple(ranges), _aligned(column))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
