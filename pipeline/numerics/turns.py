"""How trajectories turn at larger scales: the angle of the h checkpoints before and the h after.

What is taken of S is the sums of its blocks of h by h increments beside the diagonal. Four blocks make
one of twice the side, so that nothing is formed as a difference.

Shapes: G = groups in the stack, K = checkpoints that are present.

Source: docs/method-2.md, §5.1 and §5.2.
"""

import numpy as np

from pipeline.numerics.stack import BoolArray, FloatArray
from pipeline.numerics.trajectory import Trajectory

SCALES = (2, 4, 8, 16)
"""Checkpoints before and after; of 1 it is the update angle."""


def turns(trajectory: Trajectory) -> dict[int, FloatArray]:
    """Scale h to (G, K) the angle of theta_k - theta_{k-h} and theta_{k+h} - theta_k, degrees.

    NaN where there are not as many checkpoints on both sides, and where one of the two is zero.
    """
    angles = {scale: np.full(trajectory.same.shape, np.nan) for scale in SCALES}
    for scale, products in _neighbouring_blocks(trajectory.increments[:, 1:, 1:]):
        lengths = np.sqrt(np.diagonal(trajectory.squared_distances, scale, 1, 2))
        lengths = lengths[:, :-scale] * lengths[:, scale:]
        cosine = angles[scale][:, scale:-scale]
        np.divide(products, lengths, out=cosine, where=lengths > 0)
        cosine[:] = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return angles


def turning(moved: BoolArray, scale: int) -> BoolArray:
    """(G,) whether a path whose increments, (G, K - 1), are all orthogonal or parallel turns anywhere.

    Args:
        moved: which increments are not zero.
    """
    until = np.pad(np.cumsum(moved, axis=1), ((0, 0), (1, 0)))
    parts = until[:, scale:] > until[:, :-scale]
    return np.any(parts[:, :-scale] & parts[:, scale:], axis=1)


def _neighbouring_blocks(increments: FloatArray):
    """Yield each scale h that fits and (G, K - 2h) sums of S[k-h+1 ... k, k+1 ... k+h], k = h ... K-1-h.

    `blocks` holds, by the lag of their columns behind their rows, the blocks of one side: of side h
    those of lags h, 2h, ..., as many as the next larger ones need.
    """
    count = increments.shape[1]
    fitting = [scale for scale in SCALES if 2 * scale <= count]
    if not fitting:
        return
    blocks = np.zeros((2 * fitting[-1] - 1, len(increments), count))
    for lag in range(1, len(blocks) + 1):
        blocks[lag - 1, :, : count - lag] = np.diagonal(increments, lag, 1, 2)
    side = 1
    while side < fitting[-1]:
        same, less, more = blocks[1::2], blocks[:-2:2], blocks[2::2]
        blocks = same[..., :-side] + same[..., side:] + less[..., side:] + more[..., :-side]
        side *= 2
        yield side, blocks[0, :, : count - 2 * side + 1]
