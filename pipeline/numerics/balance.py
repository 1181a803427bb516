"""Growth of the norm against the length of the steps, and how much of them is along theta.

Shapes: G = groups in the stack, K = checkpoints that are present.

Source: docs/method-2.md, §5.1 and §5.2.
"""

import numpy as np

from pipeline.numerics.stack import FloatArray, diagonal, ratio
from pipeline.numerics.trajectory import Trajectory


def radial_increments(trajectory: Trajectory) -> FloatArray:
    """(G, K - 1) part of each increment along theta_{k-1}, signed; NaN where that is zero."""
    return ratio(_along(trajectory), np.sqrt(diagonal(trajectory.dots)[:, :-1]))


def balance_figures(trajectory: Trajectory) -> dict[str, FloatArray]:
    """`norm_balance` and `radial_share`, (G,) each; NaN where nothing moves."""
    squared_norms = diagonal(trajectory.dots)[:, :-1]
    squared_steps = np.ascontiguousarray(diagonal(trajectory.increments)[:, 1:])
    return _figures(_along(trajectory), squared_norms, squared_steps)


def walk_balance(start: FloatArray, squared_steps: FloatArray) -> dict[str, FloatArray]:
    """Both of a random walk, orthogonal to theta_0.

    Args:
        start: (G,), squared norms of theta_0.
        squared_steps: (G, K - 1), squared lengths of the increments.
    """
    gone = np.cumsum(squared_steps, axis=1) - squared_steps
    return _figures(np.zeros_like(gone), start[:, np.newaxis] + gone, squared_steps)


def line_balance(start: FloatArray, squared_steps: FloatArray) -> dict[str, FloatArray]:
    """Both of a straight path, orthogonal to theta_0; arguments are as for `walk_balance`."""
    steps = np.sqrt(squared_steps)
    places = np.cumsum(steps, axis=1) - steps
    return _figures(places * steps, start[:, np.newaxis] + places**2, squared_steps)


def _along(trajectory: Trajectory) -> FloatArray:
    """(G, K - 1) <theta_{k-1}, Delta_k>."""
    return np.ascontiguousarray(np.diagonal(trajectory.onward_dots, 1, 1, 2))


def _figures(
    along: FloatArray, squared_norms: FloatArray, squared_steps: FloatArray
) -> dict[str, FloatArray]:
    """Both by <theta_{k-1}, Delta_k>, ||theta_{k-1}||² and ||Delta_k||², (G, K - 1) each."""
    energy = squared_steps.sum(axis=1)
    return {
        "norm_balance": ratio(-2.0 * along.sum(axis=1), energy),
        "radial_share": ratio(ratio(along**2, squared_norms).sum(axis=1), energy),
    }
