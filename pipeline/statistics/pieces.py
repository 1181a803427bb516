"""How elements are divided for the arithmetic.

The division is a function of a tensor's elements alone. Memory, threads, workers and devices
decide how much is held at once, never where a piece begins: this is what makes results equal in
bits (docs/method.md, "Bit-identity").
"""

from __future__ import annotations

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

PRODUCT_VALUES = 1 << 18
"""Of the products of pieces that are made in one call, at most, unless one has more."""

SAMPLED_EVERY = 16
MIN_SAMPLED = 1 << 18
"""Parts of fewer elements are not sampled but taken whole: a sixteenth of them would leave more
than 1 % of error, and they cost nothing."""

_STRIDE = 10_125
"""Odd, so that positions in a piece differ; near PIECE / golden ratio, so that they spread evenly and
fall into columns of every width (docs/method-2.md, §6.2)."""
_OFFSETS = np.sort((_STRIDE * np.arange(PIECE // SAMPLED_EVERY, dtype=np.int64)) % PIECE)
_MASK = (1 << 64) - 1


def piece_bounds(first: int, stop: int) -> list[tuple[int, int]]:
    """Return the pieces of the elements [first, stop) of a tensor, cut at multiples of PIECE."""
    cuts = [first, *range(first - first % PIECE + PIECE, stop, PIECE), stop]
    return list(pairwise(cuts)) if first < stop else []


def batch_elements(num_checkpoints: int) -> int:
    """Return the elements of each checkpoint that are decoded at once, at most: whole pieces."""
    return max(PIECE, BATCH_VALUES // num_checkpoints // PIECE * PIECE)


def products_at_once(num_checkpoints: int) -> int:
    """Return how many products of pieces are made in one call, at most."""
    return max(1, PRODUCT_VALUES // num_checkpoints**2)


def sampled_offsets(number: int) -> NDArray[np.int64]:
    """Return the places in a piece that stand for it, from its begin, given its number in its tensor.

    Every sixteenth element would see only columns that are multiples of gcd(16, width); these see
    all: (10125 j + splitmix64(number)) mod 16,384, j < 1,024. Source: docs/method-2.md, §6.2.
    """
    # in ascending order, with which a gather takes a third of the time
    moved = splitmix64(number) % PIECE
    wrapped = np.searchsorted(_OFFSETS, PIECE - moved)
    return np.concatenate((_OFFSETS[wrapped:] + (moved - PIECE), _OFFSETS[:wrapped] + moved))


def splitmix64(value: int) -> int:
    """Return the next output of SplitMix64 from this state (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (value + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
