"""The indicators of parts of a path: windows that slide along it, stages, phases.

The checkpoints a ... b are a path of their own, whose first checkpoint is theta_a, and every indicator
is defined for it. Its null value is that of its own few checkpoints: shares depend on how many there
are far more than on the data.

Shapes: G = groups, K = checkpoints that are present, W = checkpoints of a window, F = K - W + 1 windows
of a path, I = indicators.

Source: docs/method-2.md, section 5.4.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.numerics.indicators import INDICATORS, indicators
from pipeline.numerics.null import random_walk
from pipeline.numerics.stack import FloatArray, IntArray, diagonal
from pipeline.numerics.trajectory import Trajectory

LEAST_WIDTH = 5
"""Checkpoints of a window, at least: of fewer no indicator tells two phases apart."""
OFFERED = {
    LEAST_WIDTH: (
        *("path_length", "straightness", "relative_mds", "mean_update_angle_deg"),
        *("effective_rank", "predictability_1"),
    ),
    12: ("diffusion_exponent", "pca_share_1"),
}
"""Checkpoints that a window must have → what is said of it. A change of the data moves the first by 8 to
25 times their scatter in windows of 8, but the exponent by 3.5, in windows of 12 by 6.5, and the share in
either direction (docs/method-2.md, section 5.4)."""
LEAST_CHECKPOINTS = 6
"""Of a stage or a phase: of fewer all indicators are NaN."""

_SHARE = 4
"""Windows that are worked on together hold so much less than the paths, beside whose figures they are."""


class When(NamedTuple):
    """When checkpoints were saved, (K,) each, as for `indicators`."""

    elapsed: FloatArray
    steps: FloatArray
    numbers: FloatArray

    def of(self, first: int, count: int) -> "When":
        """Those of the checkpoints of one sub-path."""
        return When(*(column[first : first + count] for column in self))


def offered(width: int) -> tuple[str, ...]:
    """What is said of windows of so many checkpoints."""
    return tuple(name for least, names in OFFERED.items() if width >= least for name in names)


def of_windows(
    trajectory: Trajectory, when: When, width: int, groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """What is offered of every window of some groups, and its null values, (G, F, I) each.

    Args:
        trajectory: K checkpoints of all groups.
        when: of the K checkpoints.
        width: W, at most K.
        groups: (G,)
    """
    count = trajectory.same.shape[1] - width + 1
    chosen = [INDICATORS.index(name) for name in offered(width)]
    made = np.empty((2, len(groups), count, len(chosen)))
    at_once = max(1, trajectory.increments.size // (_SHARE * width**2))
    for firsts, elapsed in _alike(when.elapsed, width):
        rows, windows = (index.reshape(-1) for index in np.indices((len(groups), len(firsts))))
        for start in range(0, rows.size, at_once):
            row, first = (index[start : start + at_once] for index in (rows, firsts[windows]))
            alone = trajectory.sub_paths(groups[row], first, width)
            times = elapsed, elapsed, elapsed  # no step is offered
            made[0, row, first] = indicators(alone, *times)[:, chosen]
            made[1, row, first] = random_walk(diagonal(alone.increments), *times)[:, chosen]
    return made[0], made[1]


def of_sub_path(
    trajectory: Trajectory, when: When, first: int, last: int, groups: IntArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Every indicator of the checkpoints `first` to `last`, both included, and its null value.

    (G, I) each, in the order of `INDICATORS`; NaN if there are fewer than `LEAST_CHECKPOINTS`.

    Args:
        trajectory: K checkpoints of all groups.
        when: of the K checkpoints.
        groups: (G,), of which it is asked; default: all.
    """
    count = last - first + 1
    if groups is None:
        groups = np.arange(len(trajectory.same))
    if count < LEAST_CHECKPOINTS:
        undefined = np.full((len(groups), len(INDICATORS)), np.nan)
        return undefined, undefined
    alone = trajectory.sub_paths(groups, np.full(len(groups), first), count)
    times = when.of(first, count)
    return indicators(alone, *times), random_walk(diagonal(alone.increments), *times)


def _alike(elapsed: FloatArray, width: int) -> list[tuple[IntArray, FloatArray]]:
    """First checkpoints of windows, and the times, (W,), that all of these have from there on.

    With an even spacing all windows are alike, and are worked on together.
    """
    spans = sliding_window_view(elapsed, width)
    if "linearity_time" not in offered(width) or np.isnan(elapsed).all():
        return [(np.arange(len(spans)), np.full(width, np.nan))]
    alike: dict[bytes, list[int]] = defaultdict(list)
    spans = spans - spans[:, :1]
    for first, span in enumerate(spans):
        alike[span.tobytes()].append(first)
    return [(np.array(firsts), spans[firsts[0]]) for firsts in alike.values()]
