"""What storing weights in a number format makes of steps of equal size.

Every weight moves by m z a step, z ~ N(0, 1), the same in two steps in a row, and lies anywhere between two
stored values, which are an ulp apart there. With x = |m z| / ulp and f = frac x, in the mean

    a stored step squared                      ulp² a(x),       a(x) = x² + f (1 − f),
    two in a row, which are one of 2x          ulp² a(2x),      hence a step times the next a(2x)/2 − a(x),
    the chance that the value changes          min(1, x).

a(x) is x² at whole numbers and a straight line between them, so that the squared length of a stored step is a
convex, piecewise linear function of m: Newton's method finds the m of a given one in a few steps. What a(x) has
beyond x² is looked up, in its mean over z: it depends on m / ulp alone.

Shapes: R = steps; C = sets of weights; U = distances between stored values.

Source: docs/method-2.md, §5.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.stack import BoolArray, FloatArray, IntArray

_MIDPOINTS = 24
"""Of equal probability of |z|."""
_CELL_BITS = 14
"""An octave of m / ulp has as many cells as so many bits tell apart: no angle is off by more than 4e-4 degrees."""
_LEAST_OCTAVE, _OCTAVES = -60, 72
"""Of m / ulp, 2⁻⁶⁰ to 2¹²: the least for which no product is 0 is above it by more than the 56 octaves of
ulps (`exponents.py`); beyond the most f (1 − f) is as good as its mean, 1/6."""
_ACCURATE = 1e-6
"""Of the squared length: one more of Newton's steps from there is exact to what the table holds."""
_MOST_STEPS = 64  # Newton's; 7 were the most seen
_AT_ONCE = 2048
"""Steps worked on together: what is made of them stays in a processor's cache."""
_AT_ONCE_OF_ALL = 128
"""The same where every z is seen to, not only their mean."""


def turned_products(
    counts: FloatArray, ulps: FloatArray, which: IntArray, squared_lengths: FloatArray
) -> FloatArray:
    """(R,) mean product of a stored step and the next, of steps of the squared length given.

    Args:
        counts: (C, U) weights by how far apart stored values are there.
        ulps: (U,), these distances, powers of two, ascending.
        which: (R,) the row of `counts` that each step is of.
        squared_lengths: (R,) of the stored steps; a step of none has no product.
    """
    steps = _Steps(counts, ulps)
    products = np.zeros(len(which))
    for rows in _rows(squared_lengths, _AT_ONCE):
        sizes = 2.0 * steps.sizes(which[rows], squared_lengths[rows])
        related = steps.reach_an_ulp(sizes, which[rows])  # else no value changes in both steps
        rows, sizes = rows[related], sizes[related]
        lengths, (twice, _) = squared_lengths[rows], steps.squared_lengths(sizes, which[rows])
        products[rows] = np.clip(twice / 2.0 - lengths, 0.0, lengths)
    return products


def changes(
    counts: FloatArray, ulps: FloatArray, which: IntArray, squared_lengths: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Sums of p and of p², (R,) each, p the chance that the stored value of a weight changes.

    Arguments are as for `turned_products`.
    """
    steps = _Steps(counts, ulps)
    sums, squares = np.zeros((2, len(which)))
    for rows in _rows(squared_lengths, _AT_ONCE_OF_ALL):
        of_rows, lengths = counts[which[rows]].T, squared_lengths[rows]
        sizes = _refined(steps.sizes(which[rows], lengths), of_rows, ulps, lengths)
        chances = np.minimum(1.0, (sizes / ulps[:, None])[..., None] * _Z)
        sums[rows] = _over_ulps(of_rows * chances.mean(axis=2))
        squares[rows] = _over_ulps(of_rows * (chances**2).mean(axis=2))
    return sums, squares


def _rows(squared_lengths: FloatArray, at_once: int) -> Iterator[IntArray]:
    moved = np.flatnonzero(np.isfinite(squared_lengths) & (squared_lengths > 0))
    for first in range(0, len(moved), at_once):
        yield moved[first : first + at_once]


def _sizes_of_normal(count: int) -> FloatArray:
    """Midpoints of equal probability of |z|, scaled to mean square 1."""
    normal = NormalDist()
    sizes = np.array([normal.inv_cdf(0.5 + (n + 0.5) / (2 * count)) for n in range(count)])
    return sizes / np.sqrt(np.mean(sizes**2))


_Z = _sizes_of_normal(_MIDPOINTS)
"""Of |z|, ascending."""
_MEAN_Z = _Z.mean()


class _Steps:
    """Sets of weights, and what storing makes of steps of one size; no step depends on another one."""

    def __init__(self, counts: FloatArray, ulps: FloatArray) -> None:
        of_ulps = np.array(counts.T, order="C")
        self._numbers = _over_ulps(of_ulps)
        of_ulps *= ulps[:, None]
        self._ulps = _over_ulps(of_ulps)
        of_ulps *= ulps[:, None]
        self._all_squares = _over_ulps(of_ulps)
        of_ulps /= np.maximum(self._all_squares, np.finfo(np.float64).tiny)
        self._squares = of_ulps.astype(np.float32)
        self._least = ulps[(counts > 0).argmax(axis=1)]
        self._units = np.floor(_places(ulps[:, None])).astype(np.int64)

    def reach_an_ulp(self, sizes: FloatArray, which: IntArray) -> BoolArray:
        """(R,) whether any weight may move by an ulp, in steps of these sizes; else a(x) is x for all."""
        return sizes * _Z[-1] > self._least[which]

    def sizes(self, which: IntArray, squared_lengths: FloatArray) -> FloatArray:
        """(R,) the m of steps whose squared lengths are given.

        Newton's method comes from above: a(x) is neither less than x² nor than x.
        """
        sizes = np.minimum(
            np.sqrt(squared_lengths / self._numbers[which]),
            squared_lengths / (self._ulps[which] * _MEAN_Z),
        )
        going = np.flatnonzero(self.reach_an_ulp(sizes, which))
        for _ in range(_MOST_STEPS):
            lengths = squared_lengths[going]
            excess, slopes = self.squared_lengths(sizes[going], which[going])
            excess -= lengths
            sizes[going] -= excess / slopes
            going = going[np.abs(excess) > _ACCURATE * lengths]
            if not going.size:
                break
        return sizes

    def squared_lengths(self, sizes: FloatArray, which: IntArray) -> tuple[FloatArray, FloatArray]:
        """Those of steps of sizes m, (R,), and their slopes in m."""
        places = _places(sizes)
        floors = np.floor(places)
        within, table = (places - floors).astype(np.float32), _table()
        at = floors.astype(np.int64) - self._units - (_LEAST_OCTAVE << _CELL_BITS)
        added = table.take(at, mode="clip")
        at += 1
        rises = table.take(at, mode="clip")
        rises -= added
        added += rises * within
        squares = self._squares.take(which, axis=1)
        added *= squares
        rises *= squares
        of_all, unrounded = self._all_squares[which], self._numbers[which] * sizes
        width = np.exp2(np.floor(floors / 2.0**_CELL_BITS) - _CELL_BITS)
        return (
            unrounded * sizes + of_all * _over_ulps(added),
            2.0 * unrounded + of_all * _over_ulps(rises) / width,
        )


def _over_ulps(values: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """(R,) sums of (U, R) in the order of U: no bit depends on which ulps other rows have besides.

    Of one row alone NumPy would take another order.
    """
    rows = values.shape[1]
    return (values if rows > 1 else values.repeat(2, axis=1)).sum(axis=0)[:rows]


def _places(sizes: FloatArray) -> FloatArray:
    """Where sizes lie on a scale of octaves, each of which is divided evenly into cells."""
    fractions, exponents = np.frexp(sizes)
    return (2.0 * fractions - 2.0 + exponents) * 2.0**_CELL_BITS


@cache
def _table() -> NDArray[np.float32]:
    """Means over z of f (1 − f), f = frac x |z|, where each cell of x begins.

    In float32, which leaves less of f the larger x is, but the angles that follow are then the smaller.
    """
    octaves = np.arange(_LEAST_OCTAVE, _LEAST_OCTAVE + _OCTAVES)
    x = np.exp2(octaves)[:, None] * (1.0 + np.arange(1 << _CELL_BITS) / (1 << _CELL_BITS))
    means = x * (_MEAN_Z - x)  # less than an ulp, whatever z
    for octave in np.flatnonzero(2.0 * x[:, 0] * _Z[-1] > 1.0):
        f = x[octave].astype(np.float32) * _Z[:, None].astype(np.float32)
        f -= np.floor(f)
        means[octave] = (f * (1.0 - f)).mean(axis=0)
    return np.append(means.astype(np.float32), np.full(2, 1.0 / 6.0, np.float32))


def _refined(
    sizes: FloatArray, counts: FloatArray, ulps: FloatArray, squared_lengths: FloatArray
) -> FloatArray:
    """(R,) sizes m after one of Newton's steps in which nothing is looked up.

    Args:
        counts: (U, R).
    """
    moves = (sizes / ulps[:, None])[..., None] * _Z
    whole = np.floor(moves)
    f = moves - whole
    squares, slopes = moves**2 + f * (1.0 - f), (2.0 * whole + 1.0) * _Z
    reached = _over_ulps(counts * ulps[:, None] ** 2 * squares.mean(axis=2))
    slope = _over_ulps(counts * ulps[:, None] * slopes.mean(axis=2))
    return sizes - (reached - squared_lengths) / slope
