"""The indicators of one trajectory, their null values, and whether the two differ.

Undefined values are NaN here and NULL in the view; none is ever infinite. Angles are degrees.

Shapes: K = checkpoints that are present, M = increments that are not zero.

Source: docs/method.md, section "Indicators".
"""

import numpy as np

from pipeline.numerics.path import apex_angles_last, apex_angles_next, update_angles
from pipeline.numerics.spectrum import (
    centered_gram,
    effective_rank,
    eigenvalues,
    leading_shares,
    participation_ratio,
    rank_holding,
    stable_rank,
)
from pipeline.numerics.trajectory import (
    BoolArray,
    FloatArray,
    Trajectory,
    angles_between,
    apex_angles,
    cosines,
    random_walk,
)

INDICATORS = (
    *("mds", "mds_offdiagonal", "relative_mds"),
    *("mds_time_weighted", "relative_mds_time_weighted"),
    *("path_length", "displacement", "straightness", "norm_ratio"),
    *("mean_update_angle_deg", "mean_apex_angle_next_deg", "mean_apex_angle_last_deg"),
    *("cone_angle_deg", "origin_angle_deg"),
    *("pca_share_1", "pca_share_2", "pca_share_3"),
    *("effective_rank", "participation_ratio", "stable_rank", "rank_95", "rank_99"),
    *("diffusion_exponent", "norm_growth_exponent"),
    *("predictability_1", "predictability_2", "predictability_4", "predictability_8"),
    *("lookahead_share", "saturation_step", "settled_step"),
)

WITHOUT_ERROR = ("rank_95", "rank_99", "saturation_step", "settled_step")
"""Ranks and steps jump: the jackknife says nothing of them."""
SQUARES = (*(f"predictability_{m}" for m in (1, 2, 4, 8)), "lookahead_share")
"""Squares of dot products, which a sample makes too large: less their bias (docs/method.md,
"Sampling")."""

MEMORIES = (1, 2, 4, 8)
"""Increments that `predictability_*` looks back on."""
NEGLIGIBLE_EIGENVALUE = 1e-6
"""Of the largest: below it recent increments count as dependent."""
SATURATED_COSINE = 0.99
SETTLED_SHARE = 0.05
MIN_CHECKPOINTS_FOR_DIFFUSION = 4
ACCURACY = 1e-6
"""Relative accuracy owed to figures: smaller differences are rounding."""


def indicators(
    trajectory: Trajectory,
    elapsed: FloatArray,
    steps: FloatArray,
    numbers: FloatArray,
    *,
    centered: FloatArray | None = None,
) -> dict[str, float]:
    """Every indicator, in the order of `INDICATORS`.

    Args:
        trajectory: K present checkpoints; without any, all indicators are NaN.
        elapsed: (K,), training time in steps; where any is NaN, what needs time is NaN.
        steps: (K,), steps as numbered by the run, NaN where unknown.
        numbers: (K,), the run's number k of each checkpoint, given for a step that is unknown.
        centered: (K,), eigenvalues of the centered Gram matrix where they are known already.
    """
    if not trajectory.same.size:
        return dict.fromkeys(INDICATORS, np.nan)
    if centered is None:
        centered = eigenvalues(centered_gram(trajectory))
    relative_cosines = cosines(trajectory.relative_dots)
    return {
        **_directional_similarities(cosines(trajectory.dots), relative_cosines, elapsed),
        **_lengths(trajectory),
        **_angles(trajectory),
        **_principal_figures(centered),
        "diffusion_exponent": _diffusion_exponent(trajectory.squared_distances),
        "norm_growth_exponent": _norm_growth_exponent(np.diagonal(trajectory.dots), elapsed),
        **_predictabilities(trajectory.increments[1:, 1:]),
        "lookahead_share": _lookahead_share(trajectory),
        **_lasting_steps(trajectory, relative_cosines, np.where(np.isnan(steps), numbers, steps)),
    }


def indicators_between(
    dots: FloatArray, relative_dots: FloatArray, centered: FloatArray
) -> dict[str, float]:
    """The indicators of checkpoints of several paths: those that no path is needed for.

    Args:
        dots: (K, K), of all present checkpoints.
        relative_dots: (K, K), of displacements, each from the start of its own path.
        centered: (K,), eigenvalues of the centered Gram matrix.
    """
    found = dict.fromkeys(INDICATORS, np.nan)
    if len(dots):
        unknown = np.full(len(dots), np.nan)
        found |= _directional_similarities(cosines(dots), cosines(relative_dots), unknown)
        found |= _principal_figures(centered)
    return found


def null_values(
    trajectory: Trajectory, elapsed: FloatArray, steps: FloatArray, numbers: FloatArray
) -> dict[str, float]:
    """The same indicators of a random walk with this trajectory's step lengths.

    Source: docs/method.md, "Null values".
    """
    return indicators(random_walk(trajectory), elapsed, steps, numbers)


def differs_from_null(value: float, null: float, straight: float, stderr: float) -> bool:
    """Whether a figure says more than a random walk would; false where value or null is NaN.

    Args:
        value: The indicator of the run.
        null: The same of `random_walk`.
        straight: The same of `straight_line`; NaN leaves its part of the margin out.
        stderr: Standard error of `value`; NaN (steps, ranks) leaves its part out.

    Source: docs/method.md, "Null values".
    """
    margins = np.array([1.96 * stderr, 0.05 * abs(straight - null), ACCURACY * abs(null)])
    return bool(abs(value - null) > np.fmax.reduce(margins))


def time_weights(elapsed: FloatArray) -> FloatArray:
    """(K,) half the time between each checkpoint's neighbours; at the ends, to the one neighbour.

    NaN throughout where a time is unknown.
    """
    if np.isnan(elapsed).any():
        return np.full_like(elapsed, np.nan)
    half = np.diff(elapsed) / 2
    return np.append(half, 0.0) + np.append(0.0, half)


def _directional_similarities(
    cosine: FloatArray, relative_cosine: FloatArray, elapsed: FloatArray
) -> dict[str, float]:
    weights = time_weights(elapsed)
    even = np.ones_like(weights)
    return {
        "mds": _weighted_mean(cosine, even),
        "mds_offdiagonal": _offdiagonal_mean(cosine),
        "relative_mds": _weighted_mean(relative_cosine, even),
        "mds_time_weighted": _weighted_mean(cosine, weights),
        "relative_mds_time_weighted": _weighted_mean(relative_cosine, weights),
    }


def _weighted_mean(cosine: FloatArray, weights: FloatArray) -> float:
    """Mean over ordered pairs of defined rows, diagonal included; NaN without weight."""
    rows = ~np.isnan(np.diagonal(cosine))
    kept = weights[rows]
    total = kept.sum()
    if not total > 0:
        return np.nan
    # An elementwise sum, since a BLAS product's bits may depend on its threads.
    return float(np.sum(cosine[np.ix_(rows, rows)] * np.outer(kept, kept)) / total**2)


def _offdiagonal_mean(cosine: FloatArray) -> float:
    """Mean over ordered pairs of two defined rows; NaN for fewer than two."""
    rows = ~np.isnan(np.diagonal(cosine))
    count = np.count_nonzero(rows)
    if count < 2:
        return np.nan
    pairs = np.triu(cosine[np.ix_(rows, rows)], 1)
    return float(2.0 * pairs.sum() / (count * (count - 1)))


def _lengths(trajectory: Trajectory) -> dict[str, float]:
    norms = np.sqrt(np.diagonal(trajectory.dots))
    path_length = float(np.sqrt(np.diagonal(trajectory.increments)[1:]).sum())
    displacement = float(np.sqrt(trajectory.relative_dots[-1, -1]))
    return {
        "path_length": path_length,
        "displacement": displacement,
        "straightness": displacement / path_length if path_length > 0 else np.nan,
        "norm_ratio": float(norms[-1] / norms[0]) if norms[0] > 0 else np.nan,
    }


def _angles(trajectory: Trajectory) -> dict[str, float]:
    first, last = np.array([0]), np.array([-1])
    return {
        "mean_update_angle_deg": _mean(update_angles(trajectory)),
        "mean_apex_angle_next_deg": _mean(apex_angles_next(trajectory)),
        "mean_apex_angle_last_deg": _mean(apex_angles_last(trajectory)),
        "cone_angle_deg": _cone_angle(trajectory),
        "origin_angle_deg": float(angles_between(trajectory, first, last)[0]),
    }


def _mean(values: FloatArray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else np.nan


def _cone_angle(trajectory: Trajectory) -> float:
    """The largest angle of two displacements; NaN for fewer than two that are not zero."""
    displaced = np.flatnonzero(np.diagonal(trajectory.relative_dots) > 0)
    if displaced.size < 2:
        return np.nan
    i, j = np.triu_indices(displaced.size, 1)
    return float(apex_angles(trajectory, displaced[i], displaced[j]).max())


def _principal_figures(centered: FloatArray) -> dict[str, float]:
    first, second, third = leading_shares(centered)
    return {
        "pca_share_1": first,
        "pca_share_2": second,
        "pca_share_3": third,
        "effective_rank": effective_rank(centered),
        "participation_ratio": participation_ratio(centered),
        "stable_rank": stable_rank(centered),
        "rank_95": rank_holding(centered, 0.95),
        "rank_99": rank_holding(centered, 0.99),
    }


def _slope(x: FloatArray, y: FloatArray) -> float:
    """Least-squares slope of y over x; x has at least two distinct values."""
    x = x - x.mean()
    return float(np.sum(x * (y - y.mean())) / np.sum(x * x))


def _diffusion_exponent(squared_distances: FloatArray) -> float:
    """Slope of the log mean squared distance over log lag, lags 1 ... K // 2."""
    count = len(squared_distances)
    if count < MIN_CHECKPOINTS_FOR_DIFFUSION:
        return np.nan
    lags = np.arange(1, count // 2 + 1)
    # Sums of all diagonals at once: with as many zeros behind every row, from the last row up, those
    # of one lag stand in one column of rows that are an element shorter.
    padded = np.pad(squared_distances[::-1], ((0, 0), (0, count)))
    sums = padded.reshape(-1)[:-count].reshape(count, -1).sum(axis=0)
    means = sums[count - 1 + lags] / (count - lags)
    return _slope(np.log(lags), np.log(means)) if (means > 0).all() else np.nan


def _norm_growth_exponent(squared_norms: FloatArray, elapsed: FloatArray) -> float:
    """Slope of the log norm over log time, for times > 0."""
    if np.isnan(elapsed).any():
        return np.nan
    times, squared_norms = elapsed[elapsed > 0], squared_norms[elapsed > 0]
    if not times.size or times.min() == times.max() or not (squared_norms > 0).all():
        return np.nan
    return _slope(np.log(times), np.log(squared_norms) / 2)


def _predictabilities(increments: FloatArray) -> dict[str, float]:
    """`predictability_*` from the Gram matrix of the increments, k >= 1."""
    moved = np.diagonal(increments) > 0
    energies = np.diagonal(increments)[moved]
    # Rows of zeros ahead of the first increments: dependent directions, which hold nothing.
    padding = (max(MEMORIES), 0)
    correlations = np.pad(cosines(increments[np.ix_(moved, moved)]), (padding, padding))
    return {
        f"predictability_{memory}": _predictability(correlations, energies, memory)
        for memory in MEMORIES
    }


def _predictability(correlations: FloatArray, energies: FloatArray, memory: int) -> float:
    """Share of the increments' energy in the span of the `memory` increments before each.

    Args:
        correlations: (8 + M, 8 + M), cosines of the increments after eight rows of zeros.
        energies: (M,), squared lengths of the increments.
        memory: How many increments to look back on, at most 8.
    """
    if energies.size < 2:
        return np.nan
    targets = np.arange(max(MEMORIES) + 1, len(correlations))[:, np.newaxis]
    recent = targets + np.arange(-memory, 0)
    among = correlations[recent[:, :, np.newaxis], recent[:, np.newaxis, :]]
    values, vectors = np.linalg.eigh(among)
    along = np.einsum("kij,ki->kj", vectors, correlations[recent, targets])
    independent = values >= NEGLIGIBLE_EIGENVALUE * values[:, -1:]
    parts = np.divide(along**2, values, out=np.zeros_like(values), where=independent)
    share = np.minimum(parts.sum(axis=1), 1.0)
    return float(np.sum(share * energies[1:]) / np.sum(energies[1:]))


def _lookahead_share(trajectory: Trajectory) -> float:
    """Share of the squared distances to the end that the last increment's line would have had."""
    to_end = trajectory.squared_distances[1:-1, -1].sum()
    if not to_end > 0:
        return np.nan
    towards_end = np.triu(trajectory.increments, 1).sum(axis=1)[1:-1]
    squared_lengths = np.diagonal(trajectory.increments)[1:-1]
    gains = np.zeros_like(squared_lengths)
    forward = np.maximum(towards_end, 0.0)
    np.divide(forward**2, squared_lengths, out=gains, where=squared_lengths > 0)
    return float(gains.sum() / to_end)


def _lasting_steps(
    trajectory: Trajectory, relative_cosines: FloatArray, steps: FloatArray
) -> dict[str, float]:
    squared_displacement = trajectory.relative_dots[-1, -1]
    if not squared_displacement > 0:
        return {"saturation_step": np.nan, "settled_step": np.nan}
    saturated = relative_cosines[:, -1] >= SATURATED_COSINE
    near_end = SETTLED_SHARE**2 * squared_displacement
    settled = trajectory.squared_distances[:, -1] <= near_end
    return {
        "saturation_step": float(steps[_first_lasting(saturated)]),
        "settled_step": float(steps[_first_lasting(settled)]),
    }


def _first_lasting(reached: BoolArray) -> int:
    """The first index from which all are true; the last one must be."""
    return len(reached) - int(np.count_nonzero(np.logical_and.accumulate(reached[::-1])))
