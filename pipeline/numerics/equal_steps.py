"""What storing weights in a number format makes of steps of equal size.

Every weight moves by m z a step, z ~ N(0, 1), the same in two steps in a row, and lies anywhere between two
stored values, which are an ulp apart there. With x = |m z| / ulp and f = frac x, g = frac 2x, in the mean

    the stored step squared             ulp² a(x),                a(x) = x² + f (1 − f),
    it times the next one               ulp² (a(2x)/2 − a(x))     = ulp² (x² − f (1 − f) + g (1 − g)/2),
    the chance that the value changes   min(1, x).

a(x) is x² at whole numbers and a straight line between them, so that the squared length of a stored step is a
convex, piecewise linear function of m: Newton's method finds the m of a given one in a few steps.

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
_NEGLIGIBLE = 3e-8
"""Of the squared length: weights whose ulps squared add up to less are as if their f (1 − f) were 1/6, its mean.
It moves no angle by more than 3e-4 degrees."""
_ACCURATE = 1e-6
"""Of the squared length: one more of Newton's steps from there is exact to what float32 holds."""
_MOST_STEPS = 64  # Newton's; 7 were the most seen
_AT_ONCE = 128
"""Steps worked on together: what is made of them stays in a processor's cache."""


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
        products[rows] = squared_lengths[rows] * steps.product_over_square()
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
_Z_IN_FLOAT32 = _Z[:, None].astype(np.float32)


class _Steps:
    """Steps of some weights each, of the sizes that their squared lengths tell; no row depends on another one."""

    def __init__(self, counts: FloatArray, ulps: FloatArray, squared_lengths: FloatArray) -> None:
        self._numbers, squares = counts.sum(axis=1), counts * ulps**2
        matter = squares > _NEGLIGIBLE * squared_lengths[:, None]
        self._row, exponent = np.nonzero(matter)
        self._ulps, self._squares = ulps[exponent], squares[matter]
        self._others = np.where(matter, 0.0, squares).sum(axis=1) / 6.0
        self._solve((counts * ulps).sum(axis=1), squared_lengths)

    def _solve(self, ulps: FloatArray, squared_lengths: FloatArray) -> None:
        """Find m, (R,), and what rounding adds to the squared lengths.

        Newton's method comes from above: a(x) is neither less than x² nor than x.
        """
        self.sizes = np.minimum(
            np.sqrt(squared_lengths / self._numbers), squared_lengths / (ulps * _MEAN_Z)
        )
        self.added = np.zeros_like(self.sizes)
        going = np.ones(len(self.sizes), bool)
        for _ in range(_MOST_STEPS):
            added, slopes = self._added(self.sizes, going[self._row])
            excess = self.sizes**2 * self._numbers + added - squared_lengths
            further = excess / (2.0 * self.sizes * self._numbers + slopes)
            self.sizes[going] -= further[going]
            self.added[going] = (added - further * slopes)[going]
            going &= np.abs(excess) > _ACCURATE * squared_lengths
            if not going.any():
                break

    def product_over_square(self) -> FloatArray:
        """(R,) mean product of a step and the next, over the mean square."""
        unrounded = self.sizes**2 * self._numbers
        twice, _ = self._added(2.0 * self.sizes)
        return np.maximum(unrounded - self.added + twice / 2.0, 0.0) / (unrounded + self.added)

    def _added(
        self, sizes: FloatArray, entries: BoolArray | slice = slice(None)
    ) -> tuple[FloatArray, FloatArray]:
        """What rounding adds to the squared lengths of steps of sizes m, (R,), and its slope in m.

        Of the rows that have these entries.
        """
        row, ulps, squares = self._row[entries], self._ulps[entries], self._squares[entries]
        x = sizes[row] / ulps
        added, slopes = x * (_MEAN_Z - x), _MEAN_Z - 2.0 * x  # less than an ulp, whatever z
        among = np.flatnonzero(x * _Z[-1] > 1.0)
        added[among], slopes[among] = _means(x[among])
        total, slope = (
            np.bincount(row, values, len(sizes)).astype(np.float64, copy=False)
            for values in (squares * added, squares / ulps * slopes)
        )
        return total + self._others, slope


def _means(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means over z of f (1 − f), f = frac x |z|, and of its slope in x, (P,) each, given (P,) x.

    In float32, which leaves less of f the larger x is, but the angles that follow are then the smaller.
    """
    f = _Z_IN_FLOAT32 * x.astype(np.float32)
    f -= np.floor(f)
    rest = 1.0 - f
    slopes = (_Z_IN_FLOAT32 * (rest - f)).sum(axis=0)
    f *= rest
    return f.sum(axis=0) / _MIDPOINTS, slopes / _MIDPOINTS
