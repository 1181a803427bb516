"""The indicators of trajectories, and whether they differ from their null values (null.py).

Undefined values are NaN here and NULL in the view; none is ever infinite. Angles are degrees.

Shapes: G = groups in the stack, K = checkpoints that are present, I = indicators.

Source: docs/method.md, section "Indicators".
"""

import numpy as np

from pipeline.numerics.balance import balance_figures
from pipeline.numerics.decay import decay_starts
from pipeline.numerics.leading import backbone_share, relative_share
from pipeline.numerics.linearity import linearity
from pipeline.numerics.path import apex_angles_last, apex_angles_next, update_angles
from pipeline.numerics.predictability import MEMORIES, predictabilities
from pipeline.numerics.spectrum import (
    Spectrum,
    centered_gram,
    effective_rank,
    eigenvalues,
    leading_shares,
    participation_ratio,
    rank_holding,
    stable_rank,
)
from pipeline.numerics.stack import BoolArray, FloatArray, diagonal, patterns, ratio, selected
from pipeline.numerics.trajectory import Trajectory, angles_between, apex_angles, cosines
from pipeline.numerics.turns import SCALES, turns

INDICATORS = (
    *("mds", "mds_offdiagonal", "relative_mds"),
    *("mds_time_weighted", "relative_mds_time_weighted"),
    *("path_length", "displacement", "straightness", "norm_ratio"),
    *("mean_update_angle_deg", *(f"mean_turn_{scale}_deg" for scale in SCALES)),
    *("mean_apex_angle_next_deg", "mean_apex_angle_last_deg"),
    *("cone_angle_deg", "origin_angle_deg"),
    *("pca_share_1", "pca_share_2", "pca_share_3"),
    *("effective_rank", "participation_ratio", "stable_rank", "rank_95", "rank_99"),
    *("relative_share_1", "backbone_share", "linearity_time", "linearity_index"),
    *("diffusion_exponent", "norm_growth_exponent", "norm_balance", "radial_share"),
    *(f"predictability_{memory}" for memory in MEMORIES),
    *("lookahead_share", "saturation_step", "settled_step", "decay_start_step"),
)

WITHOUT_ERROR = ("rank_95", "rank_99", "saturation_step", "settled_step", "decay_start_step")
"""Ranks and steps jump: the jackknife says nothing of them."""
SQUARES = (
    *(f"predictability_{memory}" for memory in MEMORIES),
    *("lookahead_share", "radial_share"),
)
"""Squares of dot products, which a sample makes too large: less their bias (docs/method.md,
"Sampling")."""

SATURATED_COSINE = 0.99
SETTLED_SHARE = 0.05
MIN_CHECKPOINTS_FOR_DIFFUSION = 4
ACCURACY = 1e-6
"""Relative accuracy owed to figures: smaller differences are rounding."""
_NEARLY_WIDEST = 1e-9
"""Pairs whose cosine exceeds the least one by no more are compared by their angles: a cosine of path
that folds back a thousandfold is off by less."""


def indicators(
    trajectory: Trajectory,
    elapsed: FloatArray,
    steps: FloatArray,
    numbers: FloatArray,
    *,
    centered: FloatArray | None = None,
    relative: FloatArray | None = None,
    cosine: FloatArray | None = None,
    relative_cosine: FloatArray | None = None,
    changes: FloatArray | None = None,
) -> FloatArray:
    """Every indicator, (G, I), in the order of `INDICATORS`.

    Args:
        trajectory: K present checkpoints, one at least.
        elapsed: (K,), training time in steps; where any is NaN, what needs time is NaN.
        steps: (K,), steps as numbered by the run, NaN where unknown.
        numbers: (K,), the run's number k of each checkpoint, given for a step that is unknown.
        centered: (G, K), eigenvalues of the centered Gram matrix where they are known already.
        relative: (G, R), those of the displacements' Gram matrix, likewise.
        cosine: (G, K, K), cosines of the checkpoints, likewise.
        relative_cosine: (G, K, K), cosines of the displacements, likewise.
        changes: (G, K), of `phases.jumps`, likewise.
    """
    if centered is None:
        centered = eigenvalues(centered_gram(trajectory))
    if cosine is None:
        cosine = cosines(trajectory.dots)
    if relative_cosine is None:
        relative_cosine = cosines(trajectory.relative_dots)
    if relative is None:
        share_1 = relative_share(trajectory.relative_dots)
    else:
        share_1 = leading_shares(relative)[:, 0]
    return in_order(
        {
            **_directional_similarities(cosine, relative_cosine, elapsed),
            **lengths(trajectory),
            **_angles(trajectory, relative_cosine),
            **principal_figures(centered),
            "relative_share_1": share_1,
            "backbone_share": backbone_share(relative_cosine),
            **_linearities(trajectory, centered, elapsed, numbers),
            "diffusion_exponent": diffusion_exponent(trajectory.squared_distances),
            "norm_growth_exponent": norm_growth_exponent(diagonal(trajectory.dots), elapsed),
            **balance_figures(trajectory),
            **predictabilities(trajectory.increments[:, 1:, 1:]),
            "lookahead_share": _lookahead_share(trajectory),
            **_lasting_steps(
                trajectory, relative_cosine, np.where(np.isnan(steps), numbers, steps)
            ),
            "decay_start_step": decay_starts(trajectory, elapsed, steps, numbers, changes),
        }
    )


def indicators_between(
    cosine: FloatArray, relative_cosine: FloatArray, spectra: Spectrum
) -> FloatArray:
    """The indicators, (G, I), of checkpoints of several paths: those that no path is needed for.

    Args:
        cosine: (G, K, K), of all present checkpoints.
        relative_cosine: (G, K, K), of displacements, each from the start of its own path.
        spectra: of `spectrum_between`.
    """
    centered, relative = (spectra.eigenvalues[basis] for basis in ("centered", "relative"))
    unknown = np.full(cosine.shape[1], np.nan)
    values = dict.fromkeys(INDICATORS, np.full(len(cosine), np.nan))
    values |= _directional_similarities(cosine, relative_cosine, unknown)
    values["relative_share_1"] = leading_shares(relative)[:, 0]
    values["backbone_share"] = backbone_share(relative_cosine)
    return in_order(values | principal_figures(centered))


def in_order(values: dict[str, FloatArray]) -> FloatArray:
    """Return indicators by name, (G,) each, as (G, I) in the order of `INDICATORS`."""
    return np.stack([values[name] for name in INDICATORS], axis=1)


def differ_from_null(
    values: FloatArray, nulls: FloatArray, straight: FloatArray, errors: FloatArray
) -> BoolArray:
    """Whether figures say more than a random walk would; false where value or null is NaN.

    Args:
        values: The indicators of the run; all arguments are of one shape.
        nulls: The same of a random walk (null.py).
        straight: The same of a straight line; NaN leaves its part of the margin out.
        errors: Standard errors of `values`; NaN (steps, ranks) leaves its part out.

    Source: docs/method.md, "Null values".
    """
    margin = np.fmax(1.96 * errors, 0.05 * np.abs(straight - nulls))
    return np.abs(values - nulls) > np.fmax(margin, ACCURACY * np.abs(nulls))


def time_weights(elapsed: FloatArray) -> FloatArray:
    """(K,) half the time between each checkpoint's neighbours; at the ends, to the one neighbour.

    NaN throughout where a time is unknown.
    """
    if np.isnan(elapsed).any():
        return np.full_like(elapsed, np.nan)
    half = np.diff(elapsed) / 2
    return np.append(half, 0.0) + np.append(0.0, half)


def principal_figures(centered: FloatArray) -> dict[str, FloatArray]:
    """What the eigenvalues of the centered Gram matrix, (G, K), sum up to."""
    first, second, third = leading_shares(centered).T
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


def slope(x: FloatArray, y: FloatArray) -> FloatArray:
    """(G,) least-squares slopes of y, (G, P), over x, (P,), which has at least two values."""
    x, y = x - x.mean(), np.ascontiguousarray(y)  # summed in this order
    return np.sum(x * (y - y.mean(axis=1, keepdims=True)), axis=1) / np.sum(x * x)


def slope_of_logarithms(x: FloatArray, y: FloatArray) -> FloatArray:
    """(G,) slopes of ln y, (G, P), over ln x, (P,); NaN where a y is not positive."""
    positive = np.all(y > 0, axis=1)
    logarithms = np.log(np.where(positive[:, np.newaxis], y, 1.0))
    return np.where(positive, slope(np.log(x), logarithms), np.nan)


def norm_growth_exponent(squared_norms: FloatArray, elapsed: FloatArray) -> FloatArray:
    """(G,) slope of the log norm over log time, for times > 0."""
    times = elapsed[elapsed > 0]
    if np.isnan(elapsed).any() or not times.size or times.min() == times.max():
        return np.full(len(squared_norms), np.nan)
    return slope_of_logarithms(times, squared_norms[:, elapsed > 0]) / 2


def lasting_step(reached: BoolArray, steps: FloatArray) -> FloatArray:
    """(G,) the step, of (K,), from which all of (G, K) are true; the last one must be."""
    lasting = np.logical_and.accumulate(reached[:, ::-1], axis=1).sum(axis=1)
    return steps[reached.shape[1] - lasting]


def mean_of_defined(values: FloatArray) -> FloatArray:
    """(G,) means of the rows of (G, K) without what is NaN; NaN if nothing is defined."""
    means = np.full(len(values), np.nan)
    for groups, defined in patterns(~np.isnan(values)):
        kept = np.ascontiguousarray(values[groups][:, defined])  # summed in this order
        if kept.shape[1]:
            means[groups] = kept.mean(axis=1)
    return means


def _directional_similarities(
    cosine: FloatArray, relative_cosine: FloatArray, elapsed: FloatArray
) -> dict[str, FloatArray]:
    weights = time_weights(elapsed)
    mean, off_diagonal, in_time = mean_cosines(cosine, weights)
    relative_mean, _, relative_in_time = mean_cosines(relative_cosine, weights)
    return {
        "mds": mean,
        "mds_offdiagonal": off_diagonal,
        "relative_mds": relative_mean,
        "mds_time_weighted": in_time,
        "relative_mds_time_weighted": relative_in_time,
    }


def mean_cosines(
    cosine: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means over ordered pairs of defined rows: of all, of two different ones, and weighted; (G,)."""
    mean, off_diagonal, weighted = np.full((3, len(cosine)), np.nan)
    for groups, defined in patterns(~np.isnan(diagonal(cosine))):
        # Elementwise sums, since a BLAS product's bits may depend on its threads.
        kept = np.ascontiguousarray(selected(cosine, groups, defined))
        count, rows = kept.shape[1], kept.reshape(len(kept), -1)
        if count:
            mean[groups] = rows.sum(axis=1) / float(count) ** 2
        if count > 1:
            pairs = np.triu(kept, 1).reshape(rows.shape)
            off_diagonal[groups] = 2.0 * pairs.sum(axis=1) / (count * (count - 1))
        weight = weights[defined]
        total = weight.sum()
        if total > 0:
            products = rows * np.outer(weight, weight).reshape(-1)
            weighted[groups] = products.sum(axis=1) / total**2
    return mean, off_diagonal, weighted


def lengths(trajectory: Trajectory) -> dict[str, FloatArray]:
    """Lengths of the path, of its displacement and of its ends, and their ratios, (G,) each."""
    norms = np.sqrt(diagonal(trajectory.dots)[:, [0, -1]])
    path_length = np.sqrt(diagonal(trajectory.increments)[:, 1:]).sum(axis=1)
    displacement = np.sqrt(trajectory.relative_dots[:, -1, -1])
    return {
        "path_length": path_length,
        "displacement": displacement,
        "straightness": ratio(displacement, path_length),
        "norm_ratio": ratio(norms[:, 1], norms[:, 0]),
    }


def _angles(trajectory: Trajectory, relative_cosine: FloatArray) -> dict[str, FloatArray]:
    first, last = np.array([0]), np.array([trajectory.same.shape[1] - 1])
    return {
        "mean_update_angle_deg": mean_of_defined(update_angles(trajectory)),
        **{
            f"mean_turn_{scale}_deg": mean_of_defined(angles)
            for scale, angles in turns(trajectory).items()
        },
        "mean_apex_angle_next_deg": mean_of_defined(apex_angles_next(trajectory)),
        "mean_apex_angle_last_deg": mean_of_defined(apex_angles_last(trajectory)),
        "cone_angle_deg": _cone_angle(trajectory, relative_cosine),
        "origin_angle_deg": angles_between(trajectory, first, last)[:, 0],
    }


def _cone_angle(trajectory: Trajectory, relative_cosine: FloatArray) -> FloatArray:
    """(G,) the largest angle of two displacements; NaN for fewer than two that are not zero.

    Few pairs can be the widest, by their cosines. Which of them is, the more accurate angles say.
    """
    rows = relative_cosine.reshape(len(relative_cosine), -1)
    widest = np.fmin.reduce(rows, axis=1) + _NEARLY_WIDEST
    group, pair = np.nonzero(rows <= widest[:, np.newaxis])
    i, j = np.divmod(pair, relative_cosine.shape[1])
    group, i, j = group[i < j], i[i < j], j[i < j]
    angles = np.full(len(rows), np.nan)
    np.fmax.at(angles, group, apex_angles(trajectory, i, j, group))
    return angles


def _linearities(
    trajectory: Trajectory, centered: FloatArray, elapsed: FloatArray, numbers: FloatArray
) -> dict[str, FloatArray]:
    increments, total = trajectory.increments[:, 1:, 1:], centered.sum(axis=1)
    return {
        "linearity_time": linearity(increments, total, elapsed),
        "linearity_index": linearity(increments, total, numbers),
    }


def diffusion_exponent(squared_distances: FloatArray) -> FloatArray:
    """(G,) slope of the log mean squared distance over log lag, lags 1 ... K // 2."""
    groups, count, _ = squared_distances.shape
    if count < MIN_CHECKPOINTS_FOR_DIFFUSION:
        return np.full(groups, np.nan)
    lags = np.arange(1, count // 2 + 1)
    sums = np.zeros((groups, lags.size))
    for k in range(count - 2, -1, -1):
        ahead = squared_distances[:, k, k + 1 : k + 1 + lags.size]
        sums[:, : ahead.shape[1]] += ahead
    return slope_of_logarithms(lags.astype(float), sums / (count - lags))


def _lookahead_share(trajectory: Trajectory) -> FloatArray:
    """(G,) share of the squared distances to the end that the last increment's line would have had."""
    to_end = np.ascontiguousarray(trajectory.squared_distances[:, 1:-1, -1]).sum(axis=1)
    towards_end = np.triu(trajectory.increments, 1).sum(axis=2)[:, 1:-1]
    squared_lengths = diagonal(trajectory.increments)[:, 1:-1]
    gains = np.zeros(squared_lengths.shape)
    forward = np.maximum(towards_end, 0.0)
    np.divide(forward**2, squared_lengths, out=gains, where=squared_lengths > 0)
    return ratio(gains.sum(axis=1), to_end)


def _lasting_steps(
    trajectory: Trajectory, relative_cosine: FloatArray, steps: FloatArray
) -> dict[str, FloatArray]:
    squared_displacement = trajectory.relative_dots[:, -1, -1]
    near_end = SETTLED_SHARE**2 * squared_displacement
    reached = {
        "saturation_step": relative_cosine[:, :, -1] >= SATURATED_COSINE,
        "settled_step": trajectory.squared_distances[:, :, -1] <= near_end[:, np.newaxis],
    }
    moved = squared_displacement > 0
    for rows in reached.values():
        rows[~moved, -1] = True  # a step all the same, which is not used
    return {
        name: np.where(moved, lasting_step(rows, steps), np.nan) for name, rows in reached.items()
    }
