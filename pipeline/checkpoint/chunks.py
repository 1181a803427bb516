"""Tensors put together from chunks: blocks of a tensor that lie in several places, or files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.stored import MAX_EXTENTS, Extent, StoredTensor
from pipeline.errors import FormatError


class Chunk(NamedTuple):
    """A block of a tensor whose elements lie side by side, in the tensor's order."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: int
    """As of `Extent`."""
    start: int
    """Absolute offset of its first byte."""


def joined(
    shape: tuple[int, ...], dtype: str, chunks: Iterable[Chunk], where: str, most_extents: int
) -> StoredTensor:
    """Return the tensor that chunks make together.

    Args:
        where: the tensor's name for error messages.
        most_extents: of how many extents it may be.

    Raises:
        FormatError: they do not cover it once, or would be too many extents.
    """
    itemsize = DTYPES[dtype].itemsize
    extent_lengths: list[tuple[Extent, int]] = []
    for chunk in chunks:
        most = most_extents - len(extent_lengths)
        extent_lengths += _extents(shape, chunk, itemsize, where, most)
    extent_lengths.sort()
    reached = 0
    for extent, length in extent_lengths:
        if extent.first != reached:
            raise FormatError(
                f"{where}: expected chunks that cover it once, found a gap or overlap"
            )
        reached += length
    if reached != math.prod(shape):
        raise FormatError(f"{where}: expected {math.prod(shape):,} values, found {reached:,}")
    extents = tuple(extent for extent, _ in extent_lengths)
    start = extents[0].start if extents else 0
    return StoredTensor(dtype, shape, start, start + reached * itemsize, (), extents)


def by_rows(stored: StoredTensor, where: str, most_extents: int) -> StoredTensor:
    """Return a matrix whose columns lie rank by rank with an extent for each row of each rank.

    Raises:
        FormatError: they would be more than `most_extents`.
    """
    rows, columns = stored.shape
    width = columns // stored.ranks
    chunks = (
        Chunk((0, number * width), (rows, width), extent.file, extent.start)
        for number, extent in enumerate(stored.extents)
    )
    return joined(stored.shape, stored.dtype, chunks, where, most_extents)


def one_by_one(stored: StoredTensor) -> list[StoredTensor]:
    """Return the tensors that lie in one along its first dimension, each without it."""
    shape = stored.shape[1:]
    numel, itemsize = math.prod(shape), DTYPES[stored.dtype].itemsize
    extents = stored.extents or (Extent(0, 0, stored.start),)
    ends = [*(extent.first for extent in extents[1:]), stored.numel]
    layers: list[list[Extent]] = [[] for _ in range(stored.shape[0])]
    for extent, end in zip(extents, ends, strict=True):
        reached = extent.first
        while reached < end:
            number, first = divmod(reached, numel)
            start = extent.start + (reached - extent.first) * itemsize
            layers[number].append(Extent(first, extent.file, start))
            reached = min(end, (number + 1) * numel)
    return [
        StoredTensor(stored.dtype, shape, e[0].start, e[0].start + numel * itemsize, (), tuple(e))
        for e in layers
    ]


def _extents(
    shape: tuple[int, ...], chunk: Chunk, itemsize: int, where: str, most: int
) -> list[tuple[Extent, int]]:
    """Return the extents of a chunk, and how many elements each has.

    A chunk of rows is one extent; a chunk of columns has one in each row.
    """
    sizes = chunk.sizes
    split = max((d for d, n in enumerate(sizes) if n != shape[d]), default=0)
    length = math.prod(sizes[split:])
    count = math.prod(sizes[:split])
    if count > most:
        raise FormatError(f"{where}: expected at most {MAX_EXTENTS:,} extents, found more")
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    base = sum(o * s for o, s in zip(chunk.offsets, strides, strict=True))
    extents = []
    for number in range(count):
        first, left = base, number
        for d in reversed(range(split)):
            first += left % sizes[d] * strides[d]
            left //= sizes[d]
        start = chunk.start + number * length * itemsize
        extents.append((Extent(first, chunk.file, start), length))
    return extents
