"""The indicators of parts of a path: windows, stages, phases.

The checkpoints a ... b are a path of their own, whose first checkpoint is theta_a, and every indicator
is defined for it. Its null value is that of its own few checkpoints: shares depend on how many there
are far more than on the data.

Shapes: G = groups in the stack, K = checkpoints that are present, P = sub-paths, W = checkpoints of
each, I = indicators.

Source: docs/method-2.md, section 5.4.
"""

from typing import NamedTuple

import numpy as np

from pipeline.numerics.indicators import INDICATORS, indicators
from pipeline.numerics.null import random_walk
from pipeline.numerics.stack import FloatArray, IntArray, diagonal
from pipeline.numerics.trajectory import Trajectory

LEAST_CHECKPOINTS = 6
"""Of a stage or a phase: of fewer all indicators are NaN."""


class When(NamedTuple):
    """When checkpoints were saved, (K,) each, as for `indicators`."""

    elapsed: FloatArray
    steps: FloatArray
    numbers: FloatArray

    def of(self, first: int, count: int) -> "When":
        """Those of the checkpoints of one sub-path."""
        return When(*(column[first : first + count] for column in self))


def of_sub_path(
    trajectory: Trajectory, when: When, first: int, last: int, groups: IntArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Every indicator of the checkpoints `first` to `last`, both included, and its null value.

    (P, I) each, in the order of `INDICATORS`; NaN if there are fewer than `LEAST_CHECKPOINTS`.

    Args:
        when: of the K checkpoints of `trajectory`.
        groups: (P,), whose sub-path it is; default: that of each group.
    """
    count = last - first + 1
    if groups is None:
        groups = np.arange(len(trajectory.same))
    if count < LEAST_CHECKPOINTS:
        undefined = np.full((2, len(groups), len(INDICATORS)), np.nan)
        return undefined[0], undefined[1]
    alone, times = (
        trajectory.sub_paths(groups, np.full(len(groups), first), count),
        when.of(first, count),
    )
    return indicators(alone, *times), random_walk(diagonal(alone.increments), *times)
