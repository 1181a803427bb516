"""Which byte ranges of files fill a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.planning.align import AlignedTensor
from pipeline.planning.slices import Placed, Slice


class ByteRange(NamedTuple):
    """A half-open range of bytes of one file, and where it goes in the block."""

    file: int
    start: int
    stop: int
    row: int
    column: int


def byte_ranges(layout: Slice, tensors: Sequence[AlignedTensor]) -> list[ByteRange]:
    """Return the ranges that fill a block, row by row; ranges that touch in file and row are one.

    Where tensors are small, this costs more than reading them, so all rows are computed at once:
    12,000 tensors of 24 checkpoints take 0.05 s, and 0.5 s tensor by tensor.
    """
    held = [tensors[placed.fragment.tensor] for placed in layout.placed]
    scattered = {row for tensor in held for row in tensor.scattered}
    files = np.array([tensor.files for tensor in held])
    sizes = np.array([_itemsizes(tensor.dtypes) for tensor in held])
    first = np.array([[placed.fragment.first] for placed in layout.placed])
    stop = np.array([[placed.fragment.stop] for placed in layout.placed])
    columns = np.array([[placed.column] for placed in layout.placed])
    origins = np.array([tensor.starts for tensor in held])
    starts, stops = origins + first * sizes, origins + stop * sizes
    begins = np.ones(files.shape, np.bool_)
    begins[1:] = (
        (files[1:] != files[:-1])
        | (starts[1:] != stops[:-1])
        | (columns[1:] != columns[:-1] + stops[:-1] - starts[:-1])
    )
    found: list[ByteRange] = []
    for row in range(files.shape[1]):
        if row in scattered:
            found += _joined(_of_row(layout.placed, held, row))
            continue
        (begin,) = begins[:, row].nonzero()
        last = np.append(begin[1:], len(begins)) - 1
        values = (
            files[begin, row], starts[begin, row], stops[last, row],
            np.full(len(begin), row), columns[begin, 0],
        )  # fmt: skip
        found += map(ByteRange._make, zip(*(each.tolist() for each in values), strict=True))
    return found


@lru_cache(maxsize=256)
def _itemsizes(dtypes: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array([DTYPES[dtype].itemsize for dtype in dtypes])


def _of_row(
    placed: Sequence[Placed], tensors: Sequence[AlignedTensor], row: int
) -> Iterator[ByteRange]:
    """Yield the ranges of one row, extent by extent."""
    for each, tensor in zip(placed, tensors, strict=True):
        size = DTYPES[tensor.dtypes[row]].itemsize
        extents = tensor.pieces(row, each.fragment.first, each.fragment.stop)
        for file, start, stop, elements in extents:
            yield ByteRange(file, start, stop, row, each.column + elements * size)


def _joined(ranges: Iterator[ByteRange]) -> list[ByteRange]:
    found: list[ByteRange] = []
    for each in ranges:
        last = found[-1] if found else None
        touches = (
            last is not None
            and (last.file, last.stop) == (each.file, each.start)
            and last.column + last.stop - last.start == each.column
        )
        if last is not None and touches:
            found[-1] = last._replace(stop=each.stop)
        else:
            found.append(each)
    return found
