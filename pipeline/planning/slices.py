"""Slices: how much of a tile is held in memory at once.

A slice is a table of bytes with one row per checkpoint. Every fragment takes the same columns in
all rows, as many as its widest stored format needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.planning.align import AlignedTensor
from pipeline.planning.tiles import Fragment, Tile
from pipeline.statistics.pieces import PIECE

ROW_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Placed:
    """A fragment and the first column of its bytes in the slice."""

    fragment: Fragment
    column: int
    width: int
    """Bytes of one element in the widest format that a checkpoint stores it in."""


@dataclass(frozen=True, slots=True)
class Slice:
    placed: tuple[Placed, ...]
    row_bytes: int


def width(tensor: AlignedTensor) -> int:
    """Return the size in bytes of one element in the tensor's widest stored format."""
    return max(DTYPES[dtype].itemsize for dtype in set(tensor.dtypes))


def slices(tile: Tile, tensors: Sequence[AlignedTensor], row_bytes: int) -> Iterator[Slice]:
    """Yield the slices of a tile, in order, with rows of at most `row_bytes`.

    Fragments are cut at multiples of PIECE only; `row_bytes` must hold one piece.
    """
    placed: list[Placed] = []
    column = 0
    for fragment in tile.fragments:
        size = width(tensors[fragment.tensor])
        first = fragment.first
        while first < fragment.stop:
            column = -(-column // size) * size
            room = (row_bytes - column) // size
            stop = min(fragment.stop, (first + room) // PIECE * PIECE) if room > 0 else first
            if fragment.stop - first <= room:
                stop = fragment.stop
            if stop <= first:
                yield Slice(tuple(placed), _aligned(column))
                placed, column = [], 0
                continue
            placed.append(Placed(replace(fragment, first=first, stop=stop), column, size))
            column += (stop - first) * size
            first = stop
    if placed:
        yield Slice(tuple(placed), _aligned(column))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT
