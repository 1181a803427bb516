"""What storing weights in a number format makes of steps of equal size.

Every weight moves by m z a step, z ~ N(0, 1), the same in two steps in a row, and lies anywhere between two
stored values, which are an ulp apart there. With x = |m z| / ulp and f = frac x, g = frac 2x, in the mean

    the stored step squared             ulp² a(x),                a(x) = x² + f (1 − f),
    it times the next one               ulp² (a(2x)/2 − a(x))     = ulp² (x² − f (1 − f) + g (1 − g)/2),
    the chance that the value changes   min(1, x).

a(x) is x² at whole numbers and a straight line between them, so that the squared length of a stored step is a
convex, piecewise linear function of m: Newton's method finds the m of a given one in a few steps, to the bit.

Shapes: R = steps; C = sets of weights; U = distances between stored values.

Source: docs/method-2.md, §5.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from pipeline.numerics.stack import BoolArray, FloatArray, IntArray

_MIDPOINTS = 24
"""Of equal probability of |z|."""
_NEGLIGIBLE = 1e-8
"""Of the squared length: weights whose ulps squared add up to less are as if their a(x) were x² + 1/6, its mean.
It moves no angle by more than 2e-4 degrees, and halves the time."""
_ACCURATE = 1e-10
"""Of the squared length, for which m is accepted."""
_MOST_STEPS = 64  # Newton's; 20 were the most seen
_AT_ONCE = 256
"""Rows worked on together: what is made of them stays in a processor's cache."""


def turned_products(
    counts: FloatArray, ulps: FloatArray, which: IntArray, squared_lengths: FloatArray
) -> FloatArray:
    """(R,) mean product of a stored step and the next, of steps of the squared length given.

    Args:
        counts: (C, U) weights by how far apart stored values are there.
        ulps: (U,), these distances, ascending.
        which: (R,) the row of `counts` that each step is of.
        squared_lengths: (R,) of the stored steps; a step of none has no product.
    """
    products = np.zeros(len(which))
    for rows in _rows(squared_lengths):
        steps = _Steps(counts[which[rows]], ulps, squared_lengths[rows])
        double, _ = steps.squared_lengths(2.0 * steps.sizes)
        products[rows] = np.maximum(double / 2.0 - squared_lengths[rows], 0.0)
    return products


def changes(
    counts: FloatArray, ulps: FloatArray, which: IntArray, squared_lengths: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Sums of p and of p², (R,) each, p the chance that the stored value of a weight changes.

    Arguments are as for `turned_products`.
    """
    sums, squares = np.zeros((2, len(which)))
    for rows in _rows(squared_lengths):
        of_rows = counts[which[rows]]
        steps = _Steps(of_rows, ulps, squared_lengths[rows])
        chances = np.minimum(1.0, (steps.sizes[:, None] / ulps)[..., None] * _Z)
        sums[rows] = (of_rows * chances.mean(axis=2)).sum(axis=1)
        squares[rows] = (of_rows * (chances**2).mean(axis=2)).sum(axis=1)
    return sums, squares


def _rows(squared_lengths: FloatArray) -> Iterator[IntArray]:
    moved = np.flatnonzero(np.isfinite(squared_lengths) & (squared_lengths > 0))
    for first in range(0, len(moved), _AT_ONCE):
        yield moved[first : first + _AT_ONCE]


def _sizes_of_normal(count: int) -> FloatArray:
    """Midpoints of equal probability of |z|, scaled to mean square 1."""
    normal = NormalDist()
    sizes = np.array([normal.inv_cdf(0.5 + (n + 0.5) / (2 * count)) for n in range(count)])
    return sizes / np.sqrt(np.mean(sizes**2))


_Z = _sizes_of_normal(_MIDPOINTS)
"""Of |z|, ascending."""
_MEAN_Z = _Z.mean()
_SLOPES = 2.0 / _MIDPOINTS * _Z[:, None]


class _Steps:
    """Steps of some weights each, of the sizes that their squared lengths tell; no row depends on another one."""

    def __init__(self, counts: FloatArray, ulps: FloatArray, squared_lengths: FloatArray) -> None:
        self._numbers, squares = counts.sum(axis=1), counts * ulps**2
        matter = squares > _NEGLIGIBLE * squared_lengths[:, None]
        self._row, exponent = np.nonzero(matter)
        self._ulps, self._squares = ulps[exponent], squares[matter]
        self._others = np.where(matter, 0.0, squares).sum(axis=1) / 6.0
        self.sizes = self._sizes((counts * ulps).sum(axis=1), squared_lengths)

    def _sizes(self, ulps: FloatArray, squared_lengths: FloatArray) -> FloatArray:
        """(R,) m. Newton's method comes from above: a(x) is neither less than x² nor than x."""
        sizes = np.minimum(
            np.sqrt(squared_lengths / self._numbers), squared_lengths / (ulps * _MEAN_Z)
        )
        going = np.ones(len(sizes), bool)
        for _ in range(_MOST_STEPS):
            found, slope = self.squared_lengths(sizes, going[self._row])
            excess = found - squared_lengths
            going &= excess > _ACCURATE * squared_lengths
            if not going.any():
                break
            sizes[going] -= excess[going] / slope[going]
        return sizes

    def squared_lengths(
        self, sizes: FloatArray, entries: BoolArray | slice = slice(None)
    ) -> tuple[FloatArray, FloatArray]:
        """Squared lengths of stored steps of sizes m, (R,), and their slopes in m; of rows with these entries."""
        row, ulps, squares = self._row[entries], self._ulps[entries], self._squares[entries]
        x = sizes[row] / ulps
        above, slopes = x * (_MEAN_Z - x), _MEAN_Z - 2.0 * x  # less than an ulp, whatever z
        among = np.flatnonzero(x * _Z[-1] > 1.0)
        above[among], slopes[among] = _above_squares(x[among])
        more, steeper = (
            np.bincount(row, values, len(sizes))
            for values in (squares * above, squares / ulps * slopes)
        )
        return (
            sizes**2 * self._numbers + more + self._others,
            2.0 * sizes * self._numbers + steeper,
        )


def _above_squares(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means over z of a(x |z|) − (x |z|)², and of its slope in x, (P,) each, given (P,) x."""
    part = _Z[:, None] * x
    part -= np.floor(part)
    slopes = (_SLOPES * part).sum(axis=0)
    rest = 1.0 - part
    rest *= part
    return rest.sum(axis=0) / _MIDPOINTS, _MEAN_Z - slopes
