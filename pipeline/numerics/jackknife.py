"""Standard errors of figures that were made from a sample.

The sample is divided into groups; a replicate is the figure of the sample without one of them, its
change scaled so that the squares add up to the variance (pipeline/reduce/estimate.py). Groups
whose absence changes nothing need no replicate.

Source: docs/method.md, section "Sampling"; P. S. Kott, "The delete-a-group jackknife", Journal of
Official Statistics 17 (2001).
"""

import numpy as np

from pipeline.numerics.trajectory import FloatArray


class Jackknife:
    """The spread of the replicates about the figures of the whole sample, any shape."""

    def __init__(self, values: FloatArray, groups: int) -> None:
        """`values`: figures of the whole sample; `groups`: how many it is divided into."""
        self._values, self._groups = values, groups
        self._squares, self._changes = np.zeros_like(values), np.zeros_like(values)

    def add(self, replicate: FloatArray) -> None:
        """Add the figures without one group."""
        change = replicate - self._values
        self._squares += change**2
        self._changes += change

    def standard_errors(self) -> FloatArray:
        """Of every figure; NaN where it or a replicate is undefined, 0 where nothing varies."""
        return np.sqrt(self._squares * self._share) + 0.0 * self._values

    def corrected(self) -> FloatArray:
        """The figures less their bias, to first order in one over the size of the sample."""
        return self._values - self._changes * self._share

    @property
    def _share(self) -> float:
        return (self._groups - 1) / self._groups if self._groups else 0.0
