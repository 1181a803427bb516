"""Estimated Gram matrices of increments, given the norms of the checkpoints that these lead to.

Letters: B estimates of one part (of the whole and of jackknife replicates), N checkpoints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def with_norms(increments: Array, squares: Array, absent: NDArray[np.bool_]) -> Array:
    """Return S, (B, N, N), changed so that ‖θ_k‖² is what is known of it.

    One checkpoint after the other, θ_k = θ_{k−1} + Δ_k becomes u θ_{k−1} + Δ_k with the u near 1 that gives it
    its length: increments keep what they are across, and along gain what norms say of it. Where no u does
    (Δ_k may be as long as θ_k), θ_k is stretched as a whole. Either is linear in the rows: S stays positive
    semidefinite.

    Errors of 42 checkpoints of a trained network, 37 parts in 256 buckets, as estimated, with all of θ_k
    stretched and like this: cosines 0.0021, 0.0011 and 0.0010; lengths of increments 1.0, 1.3 and 0.9 %;
    straightness 0.0069, 0.0028 and 0.0015 (benchmarks/results/follow.md).

    Args:
        squares: (N,) ‖θ_k‖² in float64: float32 products of copies may differ.
        absent: (N,) where that is not known; their increments are zero.
    """
    count = len(squares)
    estimated = np.diagonal(increments, axis1=1, axis2=2)
    along = np.zeros(increments.shape[:2])
    """⟨θ_{k−1}, Δ_j⟩ over j, θ with its length and Δ as estimated."""
    more, kept = np.zeros(along.shape), np.ones(along.shape)
    """Δ_k becomes more[k] θ_{k−1} + kept[k] Δ_k."""
    rows = np.empty_like(increments)
    """Products of the new increments with the estimated ones."""
    known = 0.0
    for k in np.flatnonzero(~absent):
        more[:, k], kept[:, k] = _lengthened(along[:, k], estimated[:, k], known, squares[k])
        rows[:, k] = more[:, k, None] * along + kept[:, k, None] * increments[:, k]
        along += rows[:, k]
        known = squares[k]
    rows[:, absent] = 0.0
    result = np.empty_like(increments)
    along[:] = 0.0
    for k in range(count):
        result[:, k] = more[:, k, None] * along + kept[:, k, None] * rows[:, :, k]
        along += result[:, k]
    return result


def _lengthened(along: Array, square: Array, known: float, wanted: float) -> tuple[Array, Array]:
    """Return (c, b), (B,) each, such that ‖θ + c θ + b Δ‖² is what is wanted, if anything can make it so.

    Args:
        along: ⟨θ, Δ⟩.
        square: ‖Δ‖².
        known: ‖θ‖².
    """
    # c²‖θ‖² + 2c(‖θ‖² + ⟨θ, Δ⟩) − lacking = 0, solved without a difference of near numbers
    sum_of_both = known + 2 * along + square
    lacking = wanted - known - 2 * along - square
    half = known + along
    discriminant = half * half + known * lacking
    solved = (known > 0) & (half > 0) & (discriminant > 0)
    root = half + np.sqrt(np.where(solved, discriminant, 1.0))
    more = lacking / np.where(solved, root, 1.0)
    stretched = np.sqrt(wanted / np.where(sum_of_both > 0, sum_of_both, 1.0))
    stretched[sum_of_both <= 0] = 1.0
    return np.where(solved, more, stretched - 1), np.where(solved, 1.0, stretched)
