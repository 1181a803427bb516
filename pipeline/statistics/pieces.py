"""How elements are divided for the arithmetic.

The division is a function of a tensor's elements alone. Memory, threads, workers and devices
decide how much is held at once, never where a piece begins: this is what makes results equal in
bits (docs/method.md, "Bit-identity").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PIECE = 16_384
"""Elements of one float32 product. Longer float32 sums of half-precision weights are biased: worst
distance error 4.7e-7 at 16,384 elements, 2e-6 at 65,536, 2.2e-5 at 10⁶ (docs/method.md, "Sums")."""

CHUNK = 16 * PIECE
"""Tiles divide tensors at multiples of it only: at whole pieces, and in reads of half a megabyte or
more."""

BATCH_VALUES = 1 << 20
"""Of all checkpoints, that are decoded at once where a piece has fewer: calls cost as much as the work on 2¹⁸
values (16 checkpoints of 250 M on two cores: 6.5 s in batches of one piece; 4.5 with 2¹⁹ values, 4.2 with 2²⁰,
4.5 with 2²¹)."""

GPU_BATCH_VALUES = 1 << 24
"""The same on a GPU, where every call costs 5 to 10 µs of the interpreter's one lock and a piece takes 10 µs of
the bus."""
MOST_GPU_PIECES = 256
"""Of a batch: cuBLAS takes 65,535 products of one kind in a call and divides what is more, and with 65,536 a
product's bits depended on its place among them (H200)."""

PRODUCT_VALUES = 1 << 18
"""Of the products of pieces that are made in one call, at most, unless one has more."""

EXACT_COLUMNS = PIECE // 8
"""Columns of one float64 product: bounds what that route allocates."""

SAMPLED_EVERY = 16
MIN_SAMPLED = 1 << 18
"""Parts of fewer elements are not sampled but taken whole: a sixteenth of them would leave more
than 1 % of error, and they cost nothing."""

_STRIDE = 10_125
"""Odd, so that positions in a piece differ; near PIECE / golden ratio, so that they spread evenly and
fall into columns of every width (docs/method-2.md, §6.2)."""
_OFFSETS = np.sort((_STRIDE * np.arange(PIECE // SAMPLED_EVERY, dtype=np.int64)) % PIECE)
_MASK = (1 << 64) - 1


def bounds(first: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Return the elements [first, stop) of a tensor, cut at multiples of `size`: of PIECE or CHUNK."""
    cuts = [first, *range(first - first % size + size, stop, size), stop]
    return list(pairwise(cuts)) if first < stop else []


def batch_elements(num_checkpoints: int, on_gpu: bool = False) -> int:
    """Return the elements of each checkpoint that are decoded at once, at most: whole pieces."""
    if on_gpu:
        pieces = min(MOST_GPU_PIECES, GPU_BATCH_VALUES // num_checkpoints // PIECE)
    else:
        pieces = BATCH_VALUES // num_checkpoints // PIECE
    return PIECE * max(1, pieces)


def products_at_once(num_checkpoints: int) -> int:
    """Return how many products of pieces are made in one call, at most."""
    return max(1, PRODUCT_VALUES // num_checkpoints**2)


def exact_columns(num_checkpoints: int) -> int:
    """Return the columns that are held in float64 at once, of several products: an eighth of a batch."""
    return batch_elements(num_checkpoints) * EXACT_COLUMNS // PIECE


def sampled_offsets(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return the places in pieces that stand for them, (B, S), from their begins, given their numbers in tensors.

    Every sixteenth element would see only columns that are multiples of gcd(16, width); these see
    all: (10125 j + splitmix64(number)) mod 16,384, j < 1,024. Source: docs/method-2.md, §6.2.
    """
    offsets = np.empty((len(numbers), len(_OFFSETS)), np.int64)
    for row, number in zip(offsets, numbers, strict=True):
        moved = splitmix64(number) % PIECE
        # in ascending order, with which a gather takes a third of the time: from the first that wraps around on
        wrapped = int(np.searchsorted(_OFFSETS, PIECE - moved))
        first = len(row) - wrapped
        np.add(_OFFSETS[wrapped:], moved - PIECE, out=row[:first])
        np.add(_OFFSETS[:wrapped], moved, out=row[first:])
    return offsets


def splitmix64(value: int) -> int:
    """Return the next output of SplitMix64 from this state (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (value + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
