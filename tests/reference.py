"""Slow, obvious float64 reference: every figure from explicit weights, straight from its definition.

Shares no code with the package and never forms its Gram matrix S, except `increment_gram`, which
builds S as input for the package. Undefined values are NaN.

Shapes: K = checkpoints (all present), P = weights. `weights` is always (K, P), float64.

Source: docs/method.md, section "Indicators", and docs/method-2.md, §5.1 and §5.2.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tests.phases_reference import judge

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

NAN = math.nan


def increment_gram(weights: Matrix) -> Matrix:
    """(K, K) S, of the rows theta_0, theta_1 - theta_0, theta_2 - theta_1, ..."""
    rows = [weights[0]] + [weights[k] - weights[k - 1] for k in range(1, len(weights))]
    basis = np.array(rows)
    return basis @ basis.T


def labels(weights: Matrix) -> NDArray[np.int64]:
    """(K,) the first checkpoint with the same values."""
    first: list[int] = []
    for k in range(len(weights)):
        first.append(next(i for i in range(k + 1) if np.array_equal(weights[i], weights[k])))
    return np.array(first)


def fold(weights: Matrix) -> Matrix:
    """(K, K) f_ij: how far the path folds back between i and j (method, "Accuracy owed")."""
    count = len(weights)
    f = np.ones((count, count))
    for i in range(count):
        energy = 0.0
        for j in range(i + 1, count):
            energy += norm(weights[j] - weights[j - 1]) ** 2
            distance = norm(weights[j] - weights[i])
            if distance > 0:
                f[i, j] = f[j, i] = max(1.0, energy / distance**2)
    return f


def norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


def cosine(a: Vector, b: Vector) -> float:
    if not a.any() or not b.any():
        return NAN
    return float(np.dot(a / norm(a), b / norm(b)))


def angle(a: Vector, b: Vector) -> float:
    """Degrees, accurate at any size: Kahan's formula on unit vectors."""
    if not a.any() or not b.any():
        return NAN
    a, b = a / norm(a), b / norm(b)
    return math.degrees(2 * math.atan2(norm(a - b), norm(a + b)))


def ratio(a: float, b: float) -> float:
    return a / b if b > 0 else NAN


def mean(values: Iterable[float]) -> float:
    """Of the defined values."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else NAN


def slope(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = mean(x), mean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def cosine_matrix(rows: Matrix) -> Matrix:
    return np.array([[cosine(a, b) for b in rows] for a in rows])


def mean_similarity(rows: Matrix, row_weights: list[float]) -> float:
    """Squared length of the weighted mean of the unit vectors of the rows that are not zero."""
    units = [(row / norm(row), w) for row, w in zip(rows, row_weights, strict=True) if row.any()]
    total = sum(w for _, w in units)
    if not units or not total > 0:
        return NAN
    return norm(np.sum([w * unit for unit, w in units], axis=0) / total) ** 2


def turn(weights: Matrix, k: int, scale: int) -> float:
    if not scale <= k < len(weights) - scale:
        return NAN
    return angle(weights[k] - weights[k - scale], weights[k + scale] - weights[k])


def path(weights: Matrix, elapsed: Vector) -> dict[str, Vector]:
    """The columns of the view `path`, but for what rounding makes of a straight path."""
    end = len(weights) - 1
    moves = [weights[0]] + [weights[k] - weights[k - 1] for k in range(1, end + 1)]
    columns: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    for k in range(end + 1):
        inside = 0 < k < end
        away = weights[k] - weights[0]
        put("norm", norm(weights[k]))
        put("displacement", norm(away))
        put("increment", norm(moves[k]) if k else NAN)
        put("path_length", sum(norm(move) for move in moves[1 : k + 1]))
        put("update_angle_deg", angle(moves[k], moves[k + 1]) if inside else NAN)
        put("angle_to_first_deg", angle(weights[0], weights[k]))
        put("angle_to_last_deg", angle(weights[k], weights[end]))
        put("apex_angle_next_deg", angle(away, weights[k + 1] - weights[0]) if inside else NAN)
        put("apex_angle_last_deg", angle(away, weights[end] - weights[0]) if inside else NAN)
        for scale in (2, 4, 8, 16):
            put(f"turn_{scale}_deg", turn(weights, k, scale))
        before, gap = weights[max(0, k - 1)], elapsed[k] - elapsed[max(0, k - 1)]
        put("radial_increment", radial(moves[k], before) if k else NAN)
        put("angular_speed_deg", angle(before, weights[k]) / math.sqrt(gap) if gap > 0 else NAN)
        whole = weights[end] - weights[0]
        length = norm(whole)
        put("remaining", ratio(norm(weights[end] - weights[k]), length))
        along = float(np.dot(away, whole)) / length**2 if length else NAN
        put("along_end", along)
        put("off_end", norm(away - along * whole) / length if length else NAN)
    return {name: np.array(values) for name, values in columns.items()}


def radial(move: Vector, before: Vector) -> float:
    return float(np.dot(move, before)) / norm(before) if before.any() else NAN


def balance(weights: Matrix) -> dict[str, float]:
    pairs = [(weights[k - 1], weights[k] - weights[k - 1]) for k in range(1, len(weights))]
    energy = sum(norm(move) ** 2 for _, move in pairs)
    gained = sum(float(np.dot(before, move)) for before, move in pairs)
    along = sum(radial(move, before) ** 2 for before, move in pairs)
    return {"norm_balance": ratio(-2 * gained, energy), "radial_share": ratio(along, energy)}


def linearity(weights: Matrix, x: Vector) -> float:
    """R² of least squares, of all weights together."""
    about = weights - weights.mean(axis=0)
    if len(weights) < 3 or np.isnan(x).any() or np.ptp(x) == 0 or not (weights != weights[0]).any():
        return NAN
    columns = np.stack([np.ones(len(x)), (x - x[0]) / np.ptp(x)], axis=1)
    fitted = columns @ np.linalg.lstsq(columns, about, rcond=None)[0]
    return float(np.sum(fitted**2) / np.sum(about**2))


def first_shares(weights: Matrix) -> dict[str, float]:
    away = [row for row in weights - weights[0] if row.any()]
    if not away:
        return {"relative_share_1": NAN, "backbone_share": NAN}
    values = squared_singular_values(np.array(away), len(away))
    units = squared_singular_values(np.array([row / norm(row) for row in away]), len(away))
    return {
        "relative_share_1": float(values[0] / values.sum()),
        "backbone_share": float(units[0] / len(away)),
    }


def squared_singular_values(rows: Matrix, count: int) -> Vector:
    """(count,) eigenvalues of rows rows', descending, from the rows themselves."""
    values = np.zeros(count)
    if count:
        found = np.linalg.svd(rows, compute_uv=False) ** 2
        values[: min(count, len(found))] = found[:count]
    return values


def spectra(weights: Matrix) -> dict[str, Vector]:
    """Eigenvalues of the four bases of the view `spectrum`."""
    count = len(weights)
    return {
        "trajectory": squared_singular_values(weights, count),
        "relative": squared_singular_values(weights[1:] - weights[0], count - 1),
        "centered": squared_singular_values(weights - weights.mean(axis=0), count),
        "increments": squared_singular_values(np.diff(weights, axis=0), count - 1),
    }


def projection(weights: Matrix) -> Matrix:
    """(K, 3) coordinates of the centered trajectory on its first three principal directions."""
    centered = weights - weights.mean(axis=0)
    directions = np.linalg.svd(centered, full_matrices=False)[2][:3]
    coordinates = np.zeros((len(weights), 3))
    for r, direction in enumerate(directions):
        column = centered @ direction
        coordinates[:, r] = -column if column[-1] < 0 else column
    return coordinates


def principal_figures(weights: Matrix) -> dict[str, float]:
    names = ("pca_share_1", "pca_share_2", "pca_share_3", "effective_rank")
    names += ("participation_ratio", "stable_rank", "rank_95", "rank_99")
    if not (weights != weights[0]).any():
        return dict.fromkeys(names, NAN)
    values = spectra(weights)["centered"]
    p = [float(value / values.sum()) for value in values] + [0.0, 0.0]
    ranks = [next(r for r in range(1, len(p)) if sum(p[:r]) >= q) for q in (0.95, 0.99)]
    figures = (
        *p[:3],
        math.exp(-sum(x * math.log(x) for x in p if x > 0)),
        1 / sum(x * x for x in p),
        float(values.sum() / values[0]),
        *ranks,
    )
    return dict(zip(names, figures, strict=True))


def predictability(weights: Matrix, memory: int) -> float:
    moves = [move for move in np.diff(weights, axis=0) if move.any()]
    if len(moves) < 2:
        return NAN
    held, energy = 0.0, 0.0
    for k in range(1, len(moves)):
        recent = np.array([move / norm(move) for move in moves[max(0, k - memory) : k]])
        _, lengths, directions = np.linalg.svd(recent, full_matrices=False)
        kept = directions[lengths**2 >= 1e-6 * lengths[0] ** 2]
        held += min(norm(kept @ moves[k]) ** 2, norm(moves[k]) ** 2)
        energy += norm(moves[k]) ** 2
    return held / energy


def lookahead_share(weights: Matrix) -> float:
    gained, distance = 0.0, 0.0
    for k in range(1, len(weights) - 1):
        move, to_end = weights[k] - weights[k - 1], weights[-1] - weights[k]
        if move.any():
            gained += max(0.0, float(np.dot(move, to_end))) ** 2 / norm(move) ** 2
        distance += norm(to_end) ** 2
    return ratio(gained, distance)


def diffusion_exponent(weights: Matrix) -> float:
    count = len(weights)
    x: list[float] = []
    y: list[float] = []
    for lag in range(1, count // 2 + 1):
        squared = mean(norm(weights[k + lag] - weights[k]) ** 2 for k in range(count - lag))
        if count < 4 or squared == 0:
            return NAN
        x.append(math.log(lag))
        y.append(math.log(squared))
    return slope(x, y) if count >= 4 else NAN


def norm_growth_exponent(weights: Matrix, elapsed: Vector) -> float:
    if np.isnan(elapsed).any():
        return NAN
    points = [(t, norm(row)) for t, row in zip(elapsed, weights, strict=True) if t > 0]
    if len({t for t, _ in points}) < 2 or any(length == 0 for _, length in points):
        return NAN
    return slope([math.log(t) for t, _ in points], [math.log(length) for _, length in points])


def first_lasting(reached: list[bool]) -> int:
    return next(k for k in range(len(reached)) if all(reached[k:]))


def lasting_steps(weights: Matrix, steps: Vector, numbers: Vector) -> dict[str, float]:
    away = weights - weights[0]
    if not away[-1].any():
        return {"saturation_step": NAN, "settled_step": NAN}
    saturated = [cosine(row, away[-1]) >= 0.99 for row in away]
    saturated[-1] = True
    settled = [norm(weights[-1] - row) <= 0.05 * norm(away[-1]) for row in weights]
    at = {"saturation_step": first_lasting(saturated), "settled_step": first_lasting(settled)}
    return {name: float(numbers[k] if math.isnan(steps[k]) else steps[k]) for name, k in at.items()}


def time_weights(elapsed: Vector) -> list[float]:
    end = len(elapsed) - 1
    if end == 0 or np.isnan(elapsed).any():
        return [NAN] * (end + 1)
    return [float(elapsed[min(k + 1, end)] - elapsed[max(k - 1, 0)]) / 2 for k in range(end + 1)]


def similarities(weights: Matrix, elapsed: Vector) -> dict[str, float]:
    away = weights - weights[0]
    cosines = cosine_matrix(weights)
    count = len(weights)
    ones, times = [1.0] * count, time_weights(elapsed)
    return {
        "mds": mean_similarity(weights, ones),
        "mds_offdiagonal": mean(
            cosines[i, j] for i in range(count) for j in range(count) if i != j
        ),
        "relative_mds": mean_similarity(away, ones),
        "mds_time_weighted": mean_similarity(weights, times),
        "relative_mds_time_weighted": mean_similarity(away, times),
    }


def indicators(
    weights: Matrix, elapsed: Vector, steps: Vector, numbers: Vector
) -> dict[str, float]:
    """Every indicator of docs/method.md, in its order."""
    away = weights - weights[0]
    moved = [row for row in away if row.any()]
    moves = [norm(weights[k] - weights[k - 1]) for k in range(1, len(weights))]
    columns = path(weights, elapsed)
    pairs = [angle(a, b) for n, a in enumerate(moved) for b in moved[:n]]
    names = ["update_angle_deg", *(f"turn_{scale}_deg" for scale in (2, 4, 8, 16))]
    names += ["apex_angle_next_deg", "apex_angle_last_deg"]
    return {
        **similarities(weights, elapsed),
        "path_length": float(sum(moves)),
        "displacement": norm(away[-1]),
        "straightness": ratio(norm(away[-1]), sum(moves)),
        "norm_ratio": ratio(norm(weights[-1]), norm(weights[0])),
        **{f"mean_{name}": mean(columns[name]) for name in names},
        "cone_angle_deg": max(pairs, default=NAN),
        "origin_angle_deg": angle(weights[0], weights[-1]),
        **principal_figures(weights),
        **first_shares(weights),
        "linearity_time": linearity(weights, elapsed),
        "linearity_index": linearity(weights, numbers),
        "diffusion_exponent": diffusion_exponent(weights),
        "norm_growth_exponent": norm_growth_exponent(weights, elapsed),
        **balance(weights),
        **{f"predictability_{m}": predictability(weights, m) for m in (1, 2, 4, 8)},
        "lookahead_share": lookahead_share(weights),
        **lasting_steps(weights, steps, numbers),
        "decay_start_step": judge(weights, elapsed, steps, numbers).decay_start,
    }


def orthogonal_walk(weights: Matrix) -> Matrix:
    """(K, K) explicit weights of a walk with the same ||theta_0|| and steps, all orthogonal."""
    lengths = [norm(weights[0])]
    lengths += [norm(weights[k] - weights[k - 1]) for k in range(1, len(weights))]
    return np.cumsum(np.diag(lengths), axis=0)


def parallel_walk(weights: Matrix) -> Matrix:
    """(K, 2) the same with all steps along one direction orthogonal to theta_0."""
    walk = orthogonal_walk(weights)
    return np.stack([walk[:, 0], walk[:, 1:].sum(axis=1)], axis=1)
