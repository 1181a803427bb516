"""How elements are divided for the arithmetic.

The division is a function of a tensor's elements alone. Memory, threads, workers and devices
decide how much is held at once, never where a piece begins: this is what makes results equal in
bits (docs/method.md, "Bit-identity").
"""

from __future__ import annotations

from itertools import pairwise

PIECE = 16_384
"""Elements of one float32 product. Longer float32 sums of half-precision weights are biased: worst
distance error 4.7e-7 at 16,384 elements, 2e-6 at 65,536, 2.2e-5 at 10⁶ (docs/method.md, "Sums")."""

CHUNK = 16 * PIECE
"""Elements of one digest. Tiles divide tensors at multiples of it only, so that a tensor's digest
does not depend on the division."""


def piece_bounds(first: int, stop: int) -> list[tuple[int, int]]:
    """Return the pieces of the elements [first, stop) of a tensor, cut at multiples of PIECE."""
    cuts = [first, *range(first - first % PIECE + PIECE, stop, PIECE), stop]
    return list(pairwise(cuts)) if first < stop else []
