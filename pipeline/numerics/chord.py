"""Where checkpoints lie against the displacement of the last one, in lengths of that.

Shapes: G = groups in the stack, K = checkpoints that are present.

Source: docs/method-2.md, §5.2.
"""

import numpy as np

from pipeline.numerics.stack import FloatArray, ratio
from pipeline.numerics.trajectory import Trajectory, triangles


def chord_columns(trajectory: Trajectory) -> dict[str, FloatArray]:
    """`remaining`, `along_end` and `off_end`, (G, K) each; NaN where the path ends at its start.

    A checkpoint's distance from the line is twice the area of its triangle with both ends over the
    line's length: from dot products at theta_0 and distances, of which none is a difference.
    """
    k = np.arange(trajectory.same.shape[1])
    group = np.arange(len(trajectory.same))[:, np.newaxis]
    squared_length = trajectory.relative_dots[:, -1:, -1]
    a, b, c = triangles(
        trajectory,
        trajectory.relative_dots,
        trajectory.relative_onward_dots,
        group,
        k,
        np.full_like(k, k.size - 1),
    )
    return {
        "remaining": np.sqrt(ratio(trajectory.squared_distances[:, :, -1], squared_length)),
        "along_end": ratio(trajectory.relative_dots[:, :, -1], squared_length),
        "off_end": ratio(np.sqrt(np.maximum(a * b - c * c, 0.0)), squared_length),
    }
