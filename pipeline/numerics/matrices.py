"""The singular values of weight matrices, and what is made of them (docs/method-2.md, §6.4).

From the Gram matrix of the short side. Its products are float64: of a displacement of low rank, such as an
adapter's, float32 products leave singular values of 1e-4 of the largest where there are none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 10
"""Singular values that are kept."""
MOST_SIDE = 4_096
"""Of the short side: eigenvalues of 4,096 rows take a minute of one core, and eight times as long of twice as many."""
COLUMNS = 2_048
"""Of one product: bounds what is held in float64 beside the Gram matrix."""
RANKS = ("stable_rank", "matrix_effective_rank", "matrix_participation_ratio")


class Spectrum(NamedTuple):
    """Of one matrix."""

    sigma: NDArray[np.float64]
    """(LARGEST,) in descending order; NaN beyond its short side."""
    ranks: NDArray[np.float64]
    """(3,), as RANKS; NaN of a matrix of zeros."""


UNDEFINED = Spectrum(np.full(LARGEST, np.nan), np.full(len(RANKS), np.nan))
"""Of a matrix with NaN or infinity."""


def spectrum(matrix: NDArray[np.floating], less: NDArray[np.floating] | None = None) -> Spectrum:
    """Return the spectrum of a matrix, or of what it is more than another of the same shape.

    Args:
        matrix: (R, C), its short side at most MOST_SIDE.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix, less = matrix.T, None if less is None else less.T
    gram = np.zeros((len(matrix), len(matrix)))
    with np.errstate(all="ignore"):  # looked for below
        for start in range(0, matrix.shape[1], COLUMNS):
            columns = matrix[:, start : start + COLUMNS].astype(np.float64)
            if less is not None:
                columns -= less[:, start : start + COLUMNS]
            gram += columns @ columns.T
    return of_gram(gram)


def of_gram(gram: NDArray[np.float64]) -> Spectrum:
    """Return the spectrum of a matrix, given the products of its rows."""
    if not np.isfinite(gram).all():
        return UNDEFINED
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    sigma = np.full(LARGEST, np.nan)
    sigma[: len(squares)] = np.sqrt(squares[:LARGEST])
    total = squares.sum()
    if not total:
        return Spectrum(sigma, UNDEFINED.ranks)
    shares = squares / total
    positive = shares[shares > 0]
    entropy = -np.sum(positive * np.log(positive))
    ranks = (total / squares[0], np.exp(entropy), 1 / np.sum(shares**2))
    return Spectrum(sigma, np.array(ranks))


def needed(rows: int, columns: int) -> int:
    """Return the bytes that `spectrum` takes beside its matrices."""
    short = min(rows, columns)
    return 8 * short * (6 * short + 2 * min(COLUMNS, max(rows, columns)))
