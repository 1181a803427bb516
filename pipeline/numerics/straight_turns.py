"""The angles by which rounding alone makes a straight path turn.

Shapes: G = groups in the stack, K = checkpoints that are present, H = spans of turns.

Source: docs/method-2.md, §5.2 and §5.3.
"""

import numpy as np

from pipeline.numerics.stack import FloatArray
from pipeline.numerics.trajectory import Trajectory
from pipeline.numerics.turns import SCALES

SPANS = (1, *SCALES)
"""Checkpoints that each of both parts of a turn goes over: h in docs/method-2.md, §5.1."""
COLUMNS = tuple(f"straight_turn_{h}_deg" for h in SPANS)
"""Of the view `path`."""

PRODUCT_ERROR = 2e-7
"""Error of a cosine from float32 products (docs/method.md, §4)."""
DIFFERS_BY_DEG = 5.0
"""A turn that is larger by no more does not differ from a straight path: the angles are predicted within half
a degree where steps vary over the weights, but are up to 12 degrees too small where all weights move alike."""
SAYS_NOTHING_DEG = 85.0
"""Where rounding makes a straight path turn by as much, a turn says nothing."""


def straight_turns(trajectory: Trajectory, straight: FloatArray) -> dict[str, FloatArray]:
    """Column name to (G, K) angles, at most 90 degrees; NaN where there is no turn.

    Args:
        straight: (G, 2, H, K), of straight paths, rounded: the product of both parts of a turn, and that of
            their lengths, each summed over the tensors of the group.
    """
    products, lengths = straight[:, 0], straight[:, 1]
    cosine = np.zeros_like(products)  # what steps come to that are small beside the rounding
    np.divide(products, lengths, out=cosine, where=lengths > 0)
    angles = np.degrees(np.arccos(np.maximum(cosine - PRODUCT_ERROR, 0.0)))
    columns: dict[str, FloatArray] = {}
    for number, (h, name) in enumerate(zip(SPANS, COLUMNS, strict=True)):
        columns[name] = np.full(trajectory.same.shape, np.nan)
        moved = np.diagonal(trajectory.squared_distances, h, 1, 2) > 0
        turns = moved[:, :-h] & moved[:, h:]
        columns[name][:, h:-h][turns] = angles[:, number, h:-h][turns]
    return columns
