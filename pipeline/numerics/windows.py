"""The indicators of parts of a path: windows that slide along it, stages, phases.

The checkpoints a ... b are a path of their own, whose first checkpoint is theta_a, and every indicator
is defined for it. Its null value is that of its own few checkpoints: shares depend on how many there
are far more than on the data.

Shapes: G = groups, K = checkpoints that are present, W = checkpoints of a window, F = K - W + 1 windows
of a path, I = indicators.

Source: docs/method-2.md, section 5.4.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.numerics.indicators import (
    INDICATORS,
    diffusion_exponent,
    indicators,
    lengths,
    mean_cosines,
    mean_of_defined,
    principal_figures,
)
from pipeline.numerics.linearity import linearity
from pipeline.numerics.null import random_walk, walk_in_windows
from pipeline.numerics.path import update_angles
from pipeline.numerics.predictability import predictabilities
from pipeline.numerics.spectrum import centered_gram, eigenvalues
from pipeline.numerics.stack import FloatArray, IntArray, diagonal
from pipeline.numerics.trajectory import Trajectory, cosines

LEAST_WIDTH = 5
"""Checkpoints of a window, at least: of fewer no indicator tells two phases apart."""
OFFERED = {
    LEAST_WIDTH: (
        *("path_length", "straightness", "relative_mds", "mean_update_angle_deg"),
        *("effective_rank", "predictability_1"),
    ),
    12: ("linearity_time", "diffusion_exponent", "pca_share_1"),
}
"""Checkpoints that a window must have → what is said of it. A change of the data moves the first by 8 to
25 times their scatter in windows of 8, but linearity and exponent by 4, in windows of 12 by 7, and the
share in either direction (docs/method-2.md, section 5.4)."""
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
    names = offered(width)
    values, nulls = _of_each(
        trajectory, width, groups, len(names), partial(_figures, when=when, names=names)
    )
    return values, nulls


def predictability_of_windows(trajectory: Trajectory, width: int, groups: IntArray) -> FloatArray:
    """`predictability_1` of every window of some groups, (G, F, 1): the only square that is offered.

    Arguments are as for `of_windows`.
    """

    def figures(alone: Trajectory, firsts: IntArray) -> list[FloatArray]:
        del firsts
        return [predictabilities(alone.increments[:, 1:, 1:])["predictability_1"][:, np.newaxis]]

    (values,) = _of_each(trajectory, width, groups, 1, figures)
    return values


def _of_each(
    trajectory: Trajectory,
    width: int,
    groups: IntArray,
    indicators: int,
    figures: Callable[[Trajectory, IntArray], Sequence[FloatArray]],
) -> list[FloatArray]:
    """What `figures` gives of windows and their first checkpoints, (P, I) each, as (G, F, I) each."""
    count = trajectory.same.shape[1] - width + 1
    rows, firsts = (index.reshape(-1) for index in np.indices((len(groups), count)))
    at_once = max(1, trajectory.increments.size // (_SHARE * width**2))
    made = [
        figures(trajectory.sub_paths(groups[rows[some]], firsts[some], width), firsts[some])
        for start in range(0, rows.size, at_once)
        for some in [slice(start, start + at_once)]
    ]
    several = zip(*made, strict=True)
    return [np.concatenate(each).reshape(len(groups), count, indicators) for each in several]


def _figures(
    alone: Trajectory, firsts: IntArray, when: When, names: Sequence[str]
) -> list[FloatArray]:
    """Values and null values, (P, I) each, of windows and their first checkpoints."""
    elapsed = sliding_window_view(when.elapsed, alone.same.shape[1])[firsts]
    relative_mds, *_ = mean_cosines(cosines(alone.relative_dots), np.full_like(elapsed[0], np.nan))
    spectrum, increments = eigenvalues(centered_gram(alone)), alone.increments[:, 1:, 1:]
    values = {
        **lengths(alone),
        "relative_mds": relative_mds,
        "mean_update_angle_deg": mean_of_defined(update_angles(alone)),
        **principal_figures(spectrum),
        "linearity_time": linearity(increments, spectrum.sum(axis=1), elapsed),
        "diffusion_exponent": diffusion_exponent(alone.squared_distances),
        **predictabilities(increments),
    }
    walked = walk_in_windows(diagonal(alone.increments), elapsed)
    return [np.stack([of_kind[name] for name in names], axis=1) for of_kind in (values, walked)]


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
