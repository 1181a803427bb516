"""What rounding makes of straight paths, slowly: from the stored weights themselves, by bisection.

Each weight moves by m z in two steps in a row, where z takes 24 midpoints of equal probability of a normal
distribution (docs/method-2.md, §5.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

FRACTION_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
LEAST_EXPONENT = {
    "F64": -1022,
    "F32": -126,
    "F16": -14,
    "BF16": -126,
    "F8_E4M3": -6,
    "F8_E5M2": -14,
}
SPANS = (1, 2, 4, 8, 16)

MIDPOINTS = torch.special.ndtri(0.5 + (torch.arange(24, dtype=torch.float64) + 0.5) / 48).numpy()
MIDPOINTS = MIDPOINTS / math.sqrt(np.mean(MIDPOINTS**2))


class Expected(NamedTuple):
    """Of steps of equal size."""

    product: float
    """Σ E ab"""
    chance: float
    """Σ p"""
    squared_chance: float
    """Σ p²"""


def spacing(weights: np.ndarray, dtype: str) -> np.ndarray:
    """How far apart values of a format are at each weight; exponents are clamped as the read clamps them."""
    exponents = np.frexp(np.abs(weights))[1] - 1
    exponents[weights == 0] = -10_000
    exponents = np.clip(exponents, max(-40, LEAST_EXPONENT[dtype]), 15)
    return 2.0 ** (exponents - FRACTION_BITS[dtype])


def equal_steps(spacings: np.ndarray, squared_length: float) -> Expected:
    """What stored steps of a squared length, of weights of equal size m each, come to."""
    ulps, numbers = np.unique(spacings, return_counts=True)

    def mean(values: np.ndarray) -> float:
        return float((numbers * values.mean(axis=0)).sum())

    def sizes(m: float) -> np.ndarray:
        return m * MIDPOINTS[:, None] / ulps

    def squared(m: float) -> float:
        f = sizes(m) % 1
        return mean(ulps**2 * (sizes(m) ** 2 + f * (1 - f)))

    low, high = 0.0, math.sqrt(squared_length / len(spacings)) + 1e-300
    while squared(high) < squared_length:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if squared(middle) < squared_length else (low, middle)
    x = sizes(high)
    f, g = x % 1, 2 * x % 1
    p = np.minimum(x, 1)
    return Expected(mean(ulps**2 * (x**2 - f * (1 - f) + g * (1 - g) / 2)), mean(p), mean(p**2))


def straight_turns(parts: Sequence[tuple[np.ndarray, Sequence[str]]], span: int) -> np.ndarray:
    """(K,) angles that rounding alone makes of a straight path, degrees; NaN at the ends and beside no movement.

    Args:
        parts: the stored weights of each, (K, p) float64, and the format of each checkpoint.
    """
    count = len(parts[0][0])
    angles = np.full(count, math.nan)
    for k in range(span, count - span):
        a, b = (
            [theta[j] - theta[i] for theta, _ in parts] for i, j in ((k - span, k), (k, k + span))
        )
        if not (any(map(np.any, a)) and any(map(np.any, b))):
            continue
        lengths = [float(np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
        products = [
            equal_steps(spacing(theta[k], dtypes[k]), length).product if length else 0.0
            for (theta, dtypes), length in zip(parts, lengths, strict=True)
        ]
        cosine = sum(products) / sum(lengths) if any(lengths) else 0.0
        angles[k] = math.degrees(math.acos(min(max(cosine - 2e-7, 0.0), 1.0)))
    return angles
