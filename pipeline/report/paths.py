"""What stands beside a run in the page: a random walk and a straight line of its own step lengths.

The store has the walk's indicators (`null_value`); the line's, and the walk's spectrum and coordinates
are computed here from the run's increments.

Shapes: G = groups, K = present checkpoints.

Source: docs/method.md, "Null values".
"""

from __future__ import annotations

import numpy as np

from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.null import straight_line
from pipeline.numerics.spectrum import centered
from pipeline.report.packing import FloatArray


def straight_values(
    norms: FloatArray, increments: FloatArray, elapsed: FloatArray, steps: FloatArray
) -> dict[str, float]:
    """Return the indicators of a straight path with these step lengths; NaN where undefined.

    Args:
        norms, increments: (K,) of one group; NaN where the checkpoint is absent.
        elapsed, steps: (K,), NaN where unknown.
    """
    present = np.isfinite(norms)
    if present.sum() < 2:
        return dict.fromkeys(INDICATORS, np.nan)
    lengths = np.where(np.isfinite(increments), increments, 0.0)
    squared = np.append(norms[present][0] ** 2, lengths[present][1:] ** 2)
    numbers = np.nonzero(present)[0].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = straight_line(squared[np.newaxis], elapsed[present], steps[present], numbers)[0]
    return dict(zip(INDICATORS, values.tolist(), strict=True))


def walk(increments: FloatArray, ranks: int) -> tuple[FloatArray, FloatArray]:
    """Return what a random walk's principal components show.

    Args:
        increments: (K - 1,) lengths of the steps.

    Returns:
        shares of the first `ranks` eigenvalues of the centered Gram matrix, (R,), and the coordinates
        on the first two components, (K, 2), the last checkpoint's not negative.
    """
    gone = np.append(0.0, np.cumsum(increments**2))
    values, vectors = np.linalg.eigh(centered(np.minimum.outer(gone, gone)[np.newaxis])[0])
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    coordinates = vectors[:, :2] * np.sqrt(values[:2])
    coordinates *= np.where(coordinates[-1] < 0, -1.0, 1.0)
    total = values.sum()
    return (values / total if total > 0 else values)[:ranks], coordinates
