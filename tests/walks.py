"""Random walks in which nothing happens: what change points and decay starts must not be seen in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.decay import decay_starts
from pipeline.numerics.phases import jumps
from pipeline.numerics.trajectory import Trajectory

Array = NDArray[np.float64]

LENGTHS: dict[str, Callable[[Array], Array]] = {
    "even": np.ones_like,
    "cosine": lambda x: 0.1 + 0.45 * (1 + np.cos(np.pi * x)),
    "linear": lambda x: 1 - 0.9 * x,
    "exponential": lambda x: np.exp(-3 * x),
    "power": lambda x: (1 + 100 * x) ** -0.5,
    "warm-up": lambda x: np.minimum(1, 0.05 + x / 0.1),
}
"""Of the increments, by their place from 0 to 1."""
MEMORIES = (0.0, 0.3, 0.7)
"""Share of its direction that each increment has from the one before."""


def judged(
    count: int, increments: int, memory: float, lengths: str, weights: int, seed: int
) -> tuple[Array, Array]:
    """Return `jumps`, (count, increments + 1), and `decay_starts` of independent walks."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_normal((count, increments, weights))
    for k in range(1, increments):
        moves[:, k] = memory * moves[:, k - 1] + np.sqrt(1 - memory**2) * moves[:, k]
    moves *= LENGTHS[lengths](np.linspace(0, 1, increments))[:, np.newaxis]
    increments_gram = np.zeros((count, increments + 1, increments + 1))
    increments_gram[:, 1:, 1:] = moves @ moves.swapaxes(1, 2)
    increments_gram[:, 0, 0] = weights
    numbers = np.arange(increments + 1.0)
    trajectory = Trajectory.from_increments(
        increments_gram, np.tile(np.arange(increments + 1), (count, 1))
    )
    changes = jumps(trajectory, numbers, numbers)
    return changes, decay_starts(trajectory, numbers, numbers, numbers, changes)
