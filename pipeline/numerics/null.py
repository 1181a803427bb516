"""The indicators of two made-up paths with a run's own step lengths, in closed form.

A random walk, all of whose steps are orthogonal to each other and to theta_0, gives the null values:
its displacements have the dot products min(s_i, s_j), s_k = sum of ||Delta||^2 up to k. A straight
line orthogonal to theta_0 has x_i x_j, x_k = sum of ||Delta|| up to k. Means over pairs are then sums
over checkpoints, and most indicators are known beforehand. The eigenvalues of the walk's centered
Gram matrix are the only ones that take a decomposition.

Shapes: G = groups in the stack, K = checkpoints that are present, I = indicators.

Source: docs/method.md, sections "Null values" and "Indicators".
"""

from collections.abc import Callable

import numpy as np

from pipeline.numerics.balance import line_balance, walk_balance
from pipeline.numerics.indicators import (
    MIN_CHECKPOINTS_FOR_DIFFUSION,
    SATURATED_COSINE,
    SETTLED_SHARE,
    in_order,
    lasting_step,
    mean_of_defined,
    norm_growth_exponent,
    principal_figures,
    slope_of_logarithms,
    time_weights,
)
from pipeline.numerics.leading import walk_shares
from pipeline.numerics.linearity import line_linearity, walk_linearity
from pipeline.numerics.predictability import MEMORIES
from pipeline.numerics.spectrum import centered, eigenvalues
from pipeline.numerics.stack import BoolArray, FloatArray, ratio
from pipeline.numerics.turns import SCALES, turning

_Pairs = Callable[[FloatArray], FloatArray]
"""Weights of the checkpoints, (G, K) → the weighted sum of cosines over i < j, (G,)."""


def random_walk(
    squared_lengths: FloatArray, elapsed: FloatArray, steps: FloatArray, numbers: FloatArray
) -> FloatArray:
    """The indicators, (G, I), of the random walk.

    Args:
        squared_lengths: (G, K), ||theta_0||^2 and the squared lengths of the increments: the
            diagonal of `Trajectory.increments`.
        elapsed, steps, numbers: (K,), as for `indicators`.
    """
    start, squared_steps = squared_lengths[:, :1], squared_lengths[:, 1:]
    gone, left = _sums(squared_steps), _sums(squared_steps[:, ::-1])[:, ::-1]
    end = gone[:, -1]
    apex_next, apex_last = np.full((2, *gone.shape), np.nan)
    apex_next[:, 1:-1] = _angle(gone[:, 1:-1], squared_lengths[:, 2:])
    apex_last[:, 1:-1] = _angle(gone[:, 1:-1], left[:, 1:-1])
    first = (gone > 0).argmax(axis=1)[:, np.newaxis]
    widest = _angle(*(np.take_along_axis(sums, first, axis=1)[:, 0] for sums in (gone, left)))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine_to_end = gone / np.sqrt(gone * gone[:, -1:])
    spectrum = eigenvalues(_walk(gone))
    total, (relative_share, backbone_share) = spectrum.sum(axis=1), walk_shares(gone)
    return in_order(
        {
            **_mean_cosines(_walk_pairs(start + gone), start + gone, elapsed),
            **_mean_relative_cosines(_walk_pairs(gone), gone, elapsed),
            **_lengths(squared_lengths, np.sqrt(end), end),
            **_mean_turns(squared_steps, 90.0),
            "mean_apex_angle_next_deg": mean_of_defined(apex_next),
            "mean_apex_angle_last_deg": mean_of_defined(apex_last),
            "cone_angle_deg": np.where(_several(gone), widest, np.nan),
            "origin_angle_deg": _angle(start[:, 0], end),
            **principal_figures(spectrum),
            "relative_share_1": relative_share,
            "backbone_share": backbone_share,
            "linearity_time": walk_linearity(squared_steps, total, elapsed),
            "linearity_index": walk_linearity(squared_steps, total, numbers),
            "diffusion_exponent": _walk_diffusion_exponent(gone),
            "norm_growth_exponent": norm_growth_exponent(start + gone, elapsed),
            **walk_balance(start[:, 0], squared_steps),
            **_predictabilities(squared_steps, 0.0),
            "lookahead_share": np.where(left[:, 1:-1].any(axis=1), 0.0, np.nan),
            **_lasting_steps(
                cosine_to_end >= SATURATED_COSINE,
                left,
                end,
                np.where(np.isnan(steps), numbers, steps),
            ),
            "decay_start_step": np.full(len(end), np.nan),
        }
    )


def walk_in_windows(squared_lengths: FloatArray, elapsed: FloatArray) -> dict[str, FloatArray]:
    """What is said of windows (windows.py), by name, (G,) each, of random walks.

    Args:
        squared_lengths: (G, K), as for `random_walk`.
        elapsed: (G, K).
    """
    squared_steps = squared_lengths[:, 1:]
    gone = _sums(squared_steps)
    spectrum = eigenvalues(_walk(gone))
    moving = (gone > 0).astype(float)
    return {
        **_lengths(squared_lengths, np.sqrt(gone[:, -1]), gone[:, -1]),
        "relative_mds": _mean(_walk_pairs(gone), moving),
        **_mean_turns(squared_steps, 90.0),
        **principal_figures(spectrum),
        "linearity_time": walk_linearity(squared_steps, spectrum.sum(axis=1), elapsed),
        "diffusion_exponent": _walk_diffusion_exponent(gone),
        **_predictabilities(squared_steps, 0.0),
    }


def straight_line(
    squared_lengths: FloatArray, elapsed: FloatArray, steps: FloatArray, numbers: FloatArray
) -> FloatArray:
    """The indicators, (G, I), of the straight line; arguments are as for `random_walk`."""
    start, squared_steps = squared_lengths[:, :1], squared_lengths[:, 1:]
    places = _sums(np.sqrt(squared_steps))
    gone, left = places**2, (places[:, -1:] - places) ** 2
    end = gone[:, -1]
    apex = np.where(gone[:, 1:-1].any(axis=1), 0.0, np.nan)
    spread = (places - places.mean(axis=1, keepdims=True)) ** 2
    variance = np.where(gone[:, -1:] > 0, spread.sum(axis=1, keepdims=True), 0.0)
    gains = np.where(squared_lengths > 0, left, 0.0)[:, 1:-1]
    one = np.where(end > 0, 1.0, np.nan)
    return in_order(
        {
            **_mean_cosines(_line_pairs(start, places), start + gone, elapsed),
            **_mean_relative_cosines(_line_pairs(0.0 * start, places), gone, elapsed),
            **_lengths(squared_lengths, places[:, -1], end),
            **_mean_turns(squared_steps, 0.0),
            "mean_apex_angle_next_deg": apex,
            "mean_apex_angle_last_deg": apex,
            "cone_angle_deg": np.where(_several(gone), 0.0, np.nan),
            "origin_angle_deg": _angle(start[:, 0], end),
            **principal_figures(variance),
            "relative_share_1": one,
            "backbone_share": one,
            "linearity_time": line_linearity(squared_steps, variance[:, 0], elapsed),
            "linearity_index": line_linearity(squared_steps, variance[:, 0], numbers),
            "diffusion_exponent": _line_diffusion_exponent(places),
            "norm_growth_exponent": norm_growth_exponent(start + gone, elapsed),
            **line_balance(start[:, 0], squared_steps),
            **_predictabilities(squared_steps, 1.0),
            "lookahead_share": ratio(gains.sum(axis=1), left[:, 1:-1].sum(axis=1)),
            **_lasting_steps(gone > 0, left, end, np.where(np.isnan(steps), numbers, steps)),
            "decay_start_step": np.full(len(end), np.nan),
        }
    )


def _sums(steps: FloatArray) -> FloatArray:
    """(G, K) sums of the steps, (G, K - 1), up to each checkpoint."""
    sums = np.zeros((len(steps), steps.shape[1] + 1))
    np.cumsum(steps, axis=1, out=sums[:, 1:])
    return sums


def _walk(gone: FloatArray) -> FloatArray:
    """(G, K, K) centered Gram matrices of walks by their squared displacements, (G, K)."""
    return centered(np.minimum(gone[:, :, np.newaxis], gone[:, np.newaxis]))


def _angle(apex: FloatArray, aside: FloatArray) -> FloatArray:
    """Degrees between a vector and its sum with one orthogonal to it, by their squared lengths."""
    angle = np.degrees(np.arctan2(np.sqrt(apex * aside), apex))
    return np.where(apex > 0, angle, np.nan)


def _mean_turns(squared_steps: FloatArray, angle: float) -> dict[str, FloatArray]:
    """Those of every scale, where the path turns anywhere: by `angle`, whatever the scale."""
    scales = {"update_angle": 1, **{f"turn_{scale}": scale for scale in SCALES}}
    return {
        f"mean_{name}_deg": np.where(turning(squared_steps > 0, scale), angle, np.nan)
        for name, scale in scales.items()
    }


def _several(values: FloatArray) -> BoolArray:
    """(G,) whether more than one of a row, (G, K), is not zero."""
    return np.sum(values > 0, axis=1) > 1


def _lengths(
    squared_lengths: FloatArray, displacement: FloatArray, end: FloatArray
) -> dict[str, FloatArray]:
    """`end`: the squared displacement of the last checkpoint, which is orthogonal to theta_0."""
    start = squared_lengths[:, 0]
    path_length = np.sqrt(squared_lengths[:, 1:]).sum(axis=1)
    return {
        "path_length": path_length,
        "displacement": displacement,
        "straightness": ratio(displacement, path_length),
        "norm_ratio": ratio(np.sqrt(start + end), np.sqrt(start)),
    }


def _predictabilities(squared_steps: FloatArray, share: float) -> dict[str, FloatArray]:
    shares = np.where(_several(squared_steps), share, np.nan)
    return {f"predictability_{memory}": shares for memory in MEMORIES}


def _lasting_steps(
    saturated: BoolArray, left: FloatArray, end: FloatArray, steps: FloatArray
) -> dict[str, FloatArray]:
    """`left`: (G, K), squared distances to the last checkpoint."""
    settled = left <= SETTLED_SHARE**2 * end[:, np.newaxis]
    lasting = {"saturation_step": saturated, "settled_step": settled}
    for reached in lasting.values():
        reached[:, -1] = True
    return {
        name: np.where(end > 0, lasting_step(reached, steps), np.nan)
        for name, reached in lasting.items()
    }


def _walk_pairs(squared_norms: FloatArray) -> _Pairs:
    """The cosine of an earlier checkpoint and a later one is the ratio of their norms."""
    norms = np.sqrt(squared_norms)
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return lambda weights: (weights * inverse * _sums((weights * norms)[:, :-1])).sum(axis=1)


def _line_pairs(start: FloatArray, places: FloatArray) -> _Pairs:
    """Unit vectors have two coordinates, one along theta_0 and one along the line."""
    norms = np.sqrt(start + places**2)
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)

    def pairs(weights: FloatArray) -> FloatArray:
        across = (weights * inverse * np.sqrt(start)).sum(axis=1)
        along = (weights * inverse * places).sum(axis=1)
        return (across**2 + along**2 - (weights**2).sum(axis=1)) / 2

    return pairs


def _mean_cosines(
    pairs: _Pairs, squared_norms: FloatArray, elapsed: FloatArray
) -> dict[str, FloatArray]:
    even = (squared_norms > 0).astype(float)
    count = even.sum(axis=1)
    return {
        "mds": _mean(pairs, even),
        "mds_offdiagonal": ratio(2.0 * pairs(even), count * (count - 1.0)),
        "mds_time_weighted": _mean(pairs, even * time_weights(elapsed)),
    }


def _mean_relative_cosines(
    pairs: _Pairs, squared_displacements: FloatArray, elapsed: FloatArray
) -> dict[str, FloatArray]:
    even = (squared_displacements > 0).astype(float)
    return {
        "relative_mds": _mean(pairs, even),
        "relative_mds_time_weighted": _mean(pairs, even * time_weights(elapsed)),
    }


def _mean(pairs: _Pairs, weights: FloatArray) -> FloatArray:
    """(G,) weighted mean of the cosines over ordered pairs, diagonal included."""
    total = weights.sum(axis=1)
    mean = ((weights**2).sum(axis=1) + 2.0 * pairs(weights)) / np.where(total > 0, total, 1.0) ** 2
    return np.where(total > 0, mean, np.nan)


def _walk_diffusion_exponent(gone: FloatArray) -> FloatArray:
    """The squared distances over one lag add up to the last sums, as many as the lag, less the first."""
    count = gone.shape[1]
    if count < MIN_CHECKPOINTS_FOR_DIFFUSION:
        return np.full(len(gone), np.nan)
    lags = np.arange(1, count // 2 + 1)
    last, first = (np.cumsum(sums, axis=1)[:, lags - 1] for sums in (gone[:, ::-1], gone))
    return slope_of_logarithms(lags.astype(float), (last - first) / (count - lags))


def _line_diffusion_exponent(places: FloatArray) -> FloatArray:
    count = places.shape[1]
    if count < MIN_CHECKPOINTS_FOR_DIFFUSION:
        return np.full(len(places), np.nan)
    lags = np.arange(1, count // 2 + 1)
    steps = (places[:, lag:] - places[:, :-lag] for lag in lags)
    sums = np.stack([np.einsum("gk,gk->g", step, step) for step in steps], axis=1)
    return slope_of_logarithms(lags.astype(float), sums / (count - lags))
