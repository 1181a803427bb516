"""The angles by which rounding alone makes a straight path turn.

Shapes: G = groups in the stack, K = checkpoints that are present, H = scales of turns.

Source: docs/method-2.md, §5.2 and §5.3.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.numerics import turns
from pipeline.numerics.stack import FloatArray

SCALES = (1, *turns.SCALES)
"""Checkpoints before and after k that a turn goes over: h in docs/method-2.md, §5.1."""
COLUMNS = {scale: f"straight_turn_{scale}_deg" for scale in SCALES}
"""Of the view `path`."""

PRODUCT_ERROR = 2e-7
"""Error of a cosine from float32 products (docs/method.md, §4)."""
DIFFERS_BY_DEG = 5.0
"""A turn that is larger by no more does not differ from a straight path: the angles are predicted within half
a degree where steps vary over the weights, but are up to 12 degrees too small where all weights move alike."""
SAYS_NOTHING_DEG = 85.0
"""Where rounding makes a straight path turn by as much, a turn says nothing."""


def straight_turns(
    of_scales: Mapping[int, FloatArray], straight: FloatArray
) -> dict[str, FloatArray]:
    """Column name to (G, K) angles, at most 90 degrees; NaN where the turn is.

    Args:
        of_scales: the turns of each scale, (G, K).
        straight: (G, 2, H, K), of straight paths, rounded: the product of both parts of a turn, and that of
            their lengths, each summed over the tensors of the group.
    """
    products, lengths = straight[:, 0], straight[:, 1]
    cosine = np.zeros_like(products)  # what steps come to that are small beside the rounding
    np.divide(products, lengths, out=cosine, where=lengths > 0)
    angles = np.degrees(np.arccos(np.maximum(cosine - PRODUCT_ERROR, 0.0)))
    return {
        COLUMNS[scale]: np.where(np.isnan(of_scales[scale]), np.nan, angles[:, number])
        for number, scale in enumerate(SCALES)
    }
