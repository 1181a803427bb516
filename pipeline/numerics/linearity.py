"""How well a straight line in time explains a path: the pooled R² over all weights.

The fit of theta_k = a + b x_k explains |sum of x_k theta_k|² / sum of x_k², x centered. Written in
increments the sum has weights of one sign, so that nothing common to the checkpoints cancels.

Shapes: G = groups in the stack, K = checkpoints that are present.

Source: docs/method-2.md, §5.1.
"""

from collections.abc import Callable

import numpy as np

from pipeline.numerics.stack import FloatArray, ratio

MIN_CHECKPOINTS = 3
"""Two points always lie on a line."""


def linearity(increments: FloatArray, total: FloatArray, x: FloatArray) -> FloatArray:
    """(G,) R² of the checkpoints over x; NaN where nothing moves, or x is unknown or does not vary.

    Args:
        increments: (G, K - 1, K - 1), Gram matrices of the increments, k >= 1.
        total: (G,), traces of the centered Gram matrices.
        x: (K,), or (G, K) where they differ; NaN where unknown.
    """
    return _explained(
        lambda y: np.sum((increments @ y[..., np.newaxis])[..., 0] * y, axis=1), total, x
    )


def walk_linearity(squared_steps: FloatArray, total: FloatArray, x: FloatArray) -> FloatArray:
    """(G,) that of a random walk with increments of these squared lengths, (G, K - 1)."""
    return _explained(lambda y: np.sum(squared_steps * y**2, axis=1), total, x)


def line_linearity(squared_steps: FloatArray, total: FloatArray, x: FloatArray) -> FloatArray:
    """(G,) that of a straight path with increments of these squared lengths, (G, K - 1)."""
    return _explained(lambda y: np.sum(np.sqrt(squared_steps) * y, axis=1) ** 2, total, x)


def _explained(
    squared: Callable[[FloatArray], FloatArray], total: FloatArray, x: FloatArray
) -> FloatArray:
    """(G,) R²; `squared` gives the squared lengths of sums of increments with these weights."""
    x = x - x.mean(axis=-1, keepdims=True)
    variation = np.sum(x * x, axis=-1)
    if x.shape[-1] < MIN_CHECKPOINTS:
        return np.full(len(total), np.nan)
    # of increment j: the sum of all x_k that it is a part of
    onward = np.cumsum(x[..., ::-1], axis=-1)[..., -2::-1]
    return np.clip(ratio(squared(onward), variation * total), 0.0, 1.0)
