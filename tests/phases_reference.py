"""Change points and decay starts from explicit weights, loop by loop, as docs/method-2.md, 5.5, has them.

Shares no code with the package. A judgement that hangs by less than 1e-5 is noted: there the package
may differ (docs/method-2.md, section 8).

Shapes: K = checkpoints (all present), P = weights; `weights` is (K, P), float64.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

CLOSE = 1e-5


def norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


@dataclass
class Judgement:
    changes: dict[int, float] = field(default_factory=dict[int, float])
    """Checkpoint → ln of the ratio of lengths after it and before."""
    judged: set[int] = field(default_factory=set[int])
    """Checkpoints at which a change could have been seen."""
    decay_start: float = math.nan
    """A step."""
    doubtful: bool = False
    """Whether something compared lay within 1e-5 of its threshold."""

    def reaches(self, value: float, threshold: float) -> bool:
        self.doubtful |= abs(value - threshold) <= CLOSE * max(1.0, abs(threshold))
        return value >= threshold


@dataclass
class Stretch:
    """Increments that follow each other over equal times."""

    ends: list[int]
    """Checkpoint that each leads to."""
    y: list[float]
    u: list[float]


def judge(weights: Matrix, elapsed: Vector, steps: Vector, numbers: Vector) -> Judgement:
    result = Judgement()
    moves, ends = [], []
    for k in range(1, len(weights)):
        if (weights[k] != weights[k - 1]).any():
            moves.append(weights[k] - weights[k - 1])
            ends.append(k)
    times = numbers if any(math.isnan(t) for t in elapsed) else elapsed
    last: Stretch | None = None
    for first, stop in stretches([times[k] - times[k - 1] for k in ends]):
        if stop - first < 6:
            continue
        some = moves[first:stop]
        last = Stretch(
            ends[first:stop],
            [math.log(norm(move)) for move in some],
            [float(np.dot(a / norm(a), b / norm(b))) for a, b in pairwise(some)],
        )
        result.judged |= {last.ends[i] - 1 for i in range(3, len(last.ends) - 2)}
        split(result, last, 0, len(last.ends), scatter(last.y), scatter(last.u))
    if last is not None and last.ends[-1] == ends[-1]:
        begin = max(8, len(ends) - len(last.ends))
        for i, k in enumerate(ends):
            if k - 1 in result.changes and i > begin:
                begin = i
        place = fall(result, [norm(move) for move in moves[begin:]])
        if place is not None:
            k = ends[begin + place]
            result.decay_start = float(numbers[k] if math.isnan(steps[k]) else steps[k])
    return result


def stretches(gaps: list[float]) -> list[tuple[int, int]]:
    """Longest runs, from the left, of gaps > 0 that differ from their first by 1 % at most."""
    bounds = [0]
    for i in range(1, len(gaps)):
        if min(gaps[i], gaps[bounds[-1]]) <= 0 or abs(gaps[i] / gaps[bounds[-1]] - 1) > 0.01:
            bounds.append(i)
    return list(zip(bounds, [*bounds[1:], len(gaps)], strict=True)) if gaps else []


def scatter(values: list[float]) -> float:
    second = [values[i] - 2 * values[i + 1] + values[i + 2] for i in range(len(values) - 2)]
    middle = median(second)
    return max(0.02, 1.4826 * median([abs(d - middle) for d in second]) / math.sqrt(6))


def split(
    result: Judgement, stretch: Stretch, first: int, stop: int, sigma: float, sigma_u: float
) -> None:
    """Add the changes of the increments first ... stop - 1."""
    found: list[tuple[float, int, float]] = []
    for i in range(first + 3, stop - 2):
        jump, excess, spread = across(stretch.y, first, i, stop, result)
        spread = max(sigma, min(3 * sigma, spread))
        before = [stretch.u[j] for j in range(i - 4, i - 1) if j >= first]
        after = [stretch.u[j] for j in range(i, i + 3) if j < stop - 1]
        turn = abs(median(after) - median(before))
        alone = result.reaches(excess, max(0.6, 5 * spread))
        together = result.reaches(excess, max(0.2, 5 * spread)) and result.reaches(
            turn, max(0.1, 5 * sigma_u)
        )
        if alone or together:
            found.append((excess, i, jump))
    if not found:
        return
    excess, i, jump = max(found, key=lambda change: change[0])
    result.doubtful |= any(0 <= excess - other[0] <= CLOSE for other in found if other[1] != i)
    result.changes[stretch.ends[i] - 1] = math.copysign(excess, jump)
    split(result, stretch, first, i, sigma, sigma_u)
    split(result, stretch, i, stop, sigma, sigma_u)


def across(
    y: list[float], first: int, i: int, stop: int, result: Judgement
) -> tuple[float, float, float]:
    """J, E and the root mean square of what the lines leave, at the boundary before increment i."""
    left, right = list(range(max(first, i - 4), i)), list(range(i, min(stop, i + 4)))
    lines = [np.polyfit(side, [y[j] for j in side], 1) for side in (left, right)]
    before, after = (float(np.polyval(line, i - 0.5)) for line in lines)
    squares = sum(
        (y[j] - float(np.polyval(line, j))) ** 2
        for line, side in zip(lines, (left, right), strict=True)
        for j in side
    )
    jump = after - before
    excess = max(0.0, abs(jump) - abs(float(lines[1][0] - lines[0][0])) / 2)
    step = median(y[i : i + 3]) - median(y[i - 3 : i])
    if excess > 0.1 and not result.reaches(step * math.copysign(1, jump), abs(jump) / 2):
        excess = 0.0  # smaller ones are no change in any case
    return jump, excess, math.sqrt(squares / (len(left) + len(right) - 4))


def fall(result: Judgement, lengths: list[float]) -> int | None:
    """The last length of the plateau before a fall; None where there is no such fall."""
    count = len(lengths)
    if count < 12:
        return None
    x = np.linspace(0, 1, count)
    values = np.array(lengths) / median(lengths)
    flat = left_over(values, np.ones(count), x)
    cosine = min(
        left_over(values, f + (1 - f) * (1 + np.cos(math.pi * x)) / 2, x)
        for f in (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    )
    falls = [
        (left_over(values, np.minimum(1, f + (1 - f) * (1 - x) / (1 - x[place])), x), place)
        for place in range(3, count - 2)
        for f in (0, 0.05, 0.1, 0.2, 0.3)
    ]
    least, place = min(falls)
    if not min(flat, cosine) > count * 1e-10:  # nothing but rounding is left
        return None
    if not result.reaches(0.5, least / min(flat, cosine)):
        return None
    result.doubtful |= any(
        other - least <= CLOSE * least for other, where in falls if where != place
    )
    return place


def left_over(values: Vector, shape: Vector, x: Vector) -> float:
    """Squares left by (c_0 + c_1 x) times the shape."""
    columns = np.stack([shape, x * shape], axis=1)
    rest = values - columns @ np.linalg.lstsq(columns, values)[0]
    return float(rest @ rest)
