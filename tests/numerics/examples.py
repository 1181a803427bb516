"""Trajectories as explicit float64 weights, from the plain to the degenerate.

Shapes: K = checkpoints, P = weights. Steps are relative to the norm of theta_0.
"""

from collections.abc import Callable

import numpy as np

from tests.reference import Matrix

P = 120


def start(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def from_moves(first: Matrix, moves: Matrix) -> Matrix:
    return np.cumsum(np.vstack([first[np.newaxis], moves]), axis=0)


def walk(count: int, step: float, seed: int = 1) -> Matrix:
    """Independent Gaussian steps."""
    rng = start(seed)
    return from_moves(rng.normal(size=P), step * rng.normal(size=(count - 1, P)))


def straight(count: int, step: float) -> Matrix:
    rng = start(2)
    lengths = rng.uniform(0.5, 2.0, size=(count - 1, 1))
    return from_moves(rng.normal(size=P), step * lengths * rng.normal(size=P))


def spiral(count: int, step: float) -> Matrix:
    """A drift with a slow turn in two more directions, and steps that shrink."""
    rng = start(3)
    drift, x, y = rng.normal(size=(3, P))
    k = np.arange(1, count)[:, np.newaxis]
    moves = (0.4 * drift + np.cos(k / 9) * x + np.sin(k / 9) * y) / (1 + 0.05 * k)
    return from_moves(rng.normal(size=P), step * moves)


def oscillating(count: int, step: float) -> Matrix:
    """Every step folds most of the one before back."""
    rng = start(4)
    across = rng.normal(size=P)
    sign = (-1.0) ** np.arange(1, count)[:, np.newaxis]
    moves = sign * across + 0.1 * rng.normal(size=(count - 1, P)) + 0.05
    return from_moves(rng.normal(size=P), step * moves)


def decaying(count: int, step: float) -> Matrix:
    """Drift and noise with steps as 1 / (1 + k), as after warm-up."""
    rng = start(5)
    shrink = 1.0 / np.arange(1, count)[:, np.newaxis]
    moves = rng.normal(size=P) + rng.normal(size=(count - 1, P))
    return from_moves(rng.normal(size=P), step * shrink * moves)


def shrinking(count: int) -> Matrix:
    """Weight decay: theta keeps its direction but for a little noise."""
    rng = start(6)
    kept = 0.97 ** np.arange(count)[:, np.newaxis]
    return kept * (rng.normal(size=P) + 0.01 * rng.normal(size=(count, P)))


def with_copies(weights: Matrix, copies: dict[int, int]) -> Matrix:
    """Checkpoint k stored with the values of another, {k: other}."""
    changed = weights.copy()
    for k, other in copies.items():
        changed[k] = weights[other]
    return changed


def from_zero(weights: Matrix) -> Matrix:
    return weights - weights[0]


def standing(count: int) -> Matrix:
    return np.tile(start(7).normal(size=P), (count, 1))


EXAMPLES: dict[str, Callable[[], Matrix]] = {
    "one": lambda: walk(1, 0.1),
    "one of zeros": lambda: np.zeros((1, P)),
    "two": lambda: walk(2, 0.1),
    "two from zero": lambda: from_zero(walk(2, 0.1)),
    "three": lambda: walk(3, 0.1),
    "three, first repeated": lambda: with_copies(walk(3, 0.1), {1: 0}),
    "three, closed": lambda: with_copies(walk(3, 0.1), {2: 0}),
    "four": lambda: spiral(4, 0.2),
    "five": lambda: walk(5, 0.01),
    "five from zero": lambda: from_zero(walk(5, 0.01)),
    "standing": lambda: standing(6),
    "all zeros": lambda: np.zeros((6, P)),
    "late start": lambda: with_copies(walk(12, 0.1), dict.fromkeys(range(1, 6), 0)),
    "pauses": lambda: with_copies(walk(12, 0.1), {4: 3, 5: 3, 9: 8, 11: 10}),
    "copies": lambda: with_copies(walk(40, 1e-3), {9: 3, 20: 3, 21: 0, 30: 29, 39: 25}),
    "copies of small steps": lambda: with_copies(walk(12, 1e-5), {7: 2, 9: 0, 11: 4}),
    "closed": lambda: with_copies(spiral(12, 0.1), {11: 0}),
    "zeros inside": lambda: np.vstack([walk(4, 0.1), np.zeros((1, P)), walk(4, 0.1, seed=9)]),
    "ends in zeros": lambda: np.vstack([shrinking(11), np.zeros((1, P))]),
    "walk": lambda: walk(40, 0.05),
    "walk of small steps": lambda: walk(40, 1e-5),
    "straight": lambda: straight(40, 1e-2),
    "straight, small steps": lambda: straight(40, 1e-5),
    "spiral": lambda: spiral(40, 0.03),
    "oscillating": lambda: oscillating(40, 1e-2),
    "oscillating, small steps": lambda: oscillating(40, 1e-5),
    "decaying, small steps": lambda: decaying(40, 1e-4),
    "shrinking": lambda: shrinking(40),
    "long walk from zero": lambda: from_zero(walk(154, 0.05)),
    "long spiral": lambda: spiral(154, 0.01),
    "long decay": lambda: decaying(154, 1e-2),
    "long oscillation": lambda: oscillating(154, 1e-4),
}
