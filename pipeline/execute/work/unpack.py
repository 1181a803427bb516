"""Codes that lie two to a byte, unpacked to where a block has their elements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import WEIGHT_DTYPES, PackedDType
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import BlockLayout

_AT_ONCE = 1 << 16
"""Bytes that are looked up together: the copy of their elements, 512 KiB of float32, stays in the cache."""


def unpack(block: NDArray[np.uint8], layout: BlockLayout, tensors: Sequence[AlignedTensor]) -> None:
    """Unpack the codes of a block, which lie behind the columns of their elements."""
    for place in layout.ranges:
        range_ = place.range
        for row, name in zip(block, tensors[range_.tensor].dtypes, strict=True):
            dtype = WEIGHT_DTYPES[name]
            if not isinstance(dtype, PackedDType):
                continue
            begin, end = dtype.reach(range_.first, range_.stop)
            skipped = range_.first - begin * 8 // dtype.bits
            packed = row[place.packed : place.packed + end - begin]
            numel = range_.stop - range_.first
            elements = row[place.column : place.column + numel * dtype.itemsize]
            _unpack(packed, elements, skipped * dtype.itemsize, _pairs(dtype))


def _unpack(
    packed: NDArray[np.uint8], elements: NDArray[np.uint8], skipped: int, pairs: NDArray[Any]
) -> None:
    """Write elements, without the first `skipped` bytes of those that are packed."""
    for first in range(0, len(packed), _AT_ONCE):
        unpacked = np.take(pairs, packed[first : first + _AT_ONCE], mode="clip").view(np.uint8)
        at = first * pairs.itemsize - skipped
        target = elements[max(0, at) : at + len(unpacked)]
        target[:] = unpacked[max(0, -at) :][: len(target)]


@cache
def _pairs(dtype: PackedDType) -> NDArray[Any]:
    """Return (256,) the two elements that each byte of codes becomes, side by side in one number.

    NumPy looks numbers up at ten times the rate of rows of bytes.
    """
    codes = np.frombuffer(dtype.unpacked, np.uint8).reshape(16, -1)
    byte = np.arange(256)
    halves = codes[byte & 15], codes[byte >> 4]
    pairs = np.concatenate(halves[::-1] if dtype.upper_first else halves, axis=1)
    return pairs.view(f"u{pairs.shape[1]}")[:, 0]
