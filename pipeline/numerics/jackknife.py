"""Standard errors of figures that were made from a sample.

The sample is divided into folds; a replicate is the figure of the sample without one of them, its
change scaled so that the squares add up to the variance (pipeline/reduce/estimate.py). Folds
whose absence changes nothing need no replicate.

Source: docs/method.md, section "Sampling"; P. S. Kott, "The delete-a-group jackknife", Journal of
Official Statistics 17 (2001).
"""

import numpy as np

from pipeline.numerics.stack import FloatArray, IntArray


class Jackknife:
    """The spread of the replicates about the figures of the whole samples, (G, ...)."""

    def __init__(self, values: FloatArray, folds: IntArray) -> None:
        """`values`: (G, ...) of the whole samples; `folds`: (G,), how many each is divided into."""
        self._values = values
        share = np.where(folds > 0, (folds - 1) / np.maximum(folds, 1), 0.0)
        self._share = share.reshape(-1, *[1] * (values.ndim - 1))
        self._squares: FloatArray = np.zeros_like(self._share)  # grow with the first replicate
        self._changes: FloatArray = np.zeros_like(self._share)

    def add(self, replicates: FloatArray) -> None:
        """Add the figures, (C, G, ...), of C replicates, each without one fold."""
        for (
            replicate
        ) in replicates:  # one after the other: so are the sums, however many come at once
            change = replicate - self._values
            self._squares = self._squares + change**2
            self._changes = self._changes + change

    def standard_errors(self) -> FloatArray:
        """Of every figure; NaN where it or a replicate is undefined, 0 where nothing varies."""
        return np.sqrt(self._squares * self._share) + 0.0 * self._values

    def corrected(self) -> FloatArray:
        """The figures less their bias, to first order in one over the size of the sample."""
        return self._values - self._changes * self._share
