"""Where the learning rate begins to fall to the end: of a constant rate, the start of its decay.

Told by the lengths of the increments alone: a plateau and a fall have to leave at most half of the
squares that a straight line and a cosine leave.

Shapes: G = groups in the stack, K = checkpoints that are present, M = lengths, S = shapes that are tried.

Source: docs/method-2.md, section 5.5.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from pipeline.numerics.phases import jumps, moves
from pipeline.numerics.stack import FloatArray, IntArray
from pipeline.numerics.trajectory import Trajectory

LEAST_LENGTHS = 12
_FIRST_LEFT_OUT = 8
"""Increments at the beginning of a run, where warm-up lengthens them."""
_COSINE_ENDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Shares of the rate at which a cosine may end."""
_DECAY_ENDS = (0.0, 0.05, 0.1, 0.2, 0.3)
"""The same of a fall after a plateau."""
_FIRST_START, _LAST_START = 3, 3
"""A fall begins at the fourth length at the earliest, at the third but last at the latest."""
_LEFT_OVER = 0.5
"""Of the squares that the others leave, at most."""
_LEAST_SCATTER = 1e-5
"""Of lengths about a line or a cosine, relative to their median: less says nothing, being near to
rounding."""


def decay_starts(
    trajectory: Trajectory,
    elapsed: FloatArray,
    steps: FloatArray,
    numbers: FloatArray,
    changes: FloatArray | None = None,
) -> FloatArray:
    """(G,) the step at which a decay to the end of the run begins; NaN where none does.

    None is looked for where the run does not end with increments over equal times.

    Args:
        trajectory: K present checkpoints.
        elapsed, steps, numbers: (K,), as for `indicators`.
        changes: (G, K), of `phases.jumps`, where they are known already: lengths count from the last on.
    """
    starts = np.full(len(trajectory.same), np.nan)
    if len(numbers) <= _FIRST_LEFT_OUT + LEAST_LENGTHS:
        return starts
    if changes is None:
        changes = jumps(trajectory, elapsed, numbers)
    said = np.where(np.isnan(steps), numbers, steps)
    for of_kind in moves(trajectory, elapsed, numbers):
        ends, stretches = of_kind.ends, of_kind.stretches
        if not stretches or stretches[-1].stop < len(ends):
            continue
        earliest = max(stretches[-1].start, _FIRST_LEFT_OUT)
        changed = np.nan_to_num(changes[of_kind.groups][:, ends - 1]) != 0
        changed[:, : earliest + 1] = False
        changed[:, min(earliest, len(ends) - 1)] = True
        firsts = changed.shape[1] - 1 - changed[:, ::-1].argmax(axis=1)
        rows = np.full(len(firsts), np.nan)
        for first in np.unique(firsts[len(ends) - firsts >= LEAST_LENGTHS]):
            groups = np.flatnonzero(firsts == first)
            for group, place in _starts(of_kind.lengths[groups, first:]):
                rows[groups[group]] = said[ends[first + place]]
        starts[of_kind.groups] = rows
    return starts


def _starts(lengths: FloatArray) -> Iterator[tuple[IntArray, int]]:
    """Yield groups, of (G, M), and the last length of their plateau; not of those without a decay."""
    count = lengths.shape[1]
    scaled = lengths / np.median(lengths, axis=1, keepdims=True)
    others = _left_over(scaled, _without_plateau(count)).min(axis=1)
    fall = _left_over_by_falls(scaled)
    decays = (fall.min(axis=1) <= _LEFT_OVER * others) & (others > count * _LEAST_SCATTER**2)
    places = _FIRST_START + fall.argmin(axis=1) // len(_DECAY_ENDS)
    for place in np.unique(places[decays]):
        yield np.flatnonzero(decays & (places == place)), int(place)


def _left_over(lengths: FloatArray, bases: FloatArray) -> FloatArray:
    """(G, S) squares that the best combination of a shape's two columns leaves.

    Args:
        bases: (S, 2, M), orthonormal columns of each shape.
    """
    # no BLAS product, whose bits could depend on the other groups
    along = np.einsum("gm,sm->gs", lengths, bases.reshape(-1, lengths.shape[1]))
    explained = (along * along).reshape(len(lengths), -1, 2).sum(axis=2)
    return (lengths * lengths).sum(axis=1, keepdims=True) - explained


def _left_over_by_falls(lengths: FloatArray) -> FloatArray:
    """(G, S) the same of falls after a plateau: from each start, to each share that the rate may end at.

    With y from 1 to 0, a fall is a + b y from its start on, so that all products are sums of powers of y
    before and after it: of 927 lengths there are 4,610 falls, whose columns would take 68 MB.
    """
    count = lengths.shape[1]
    y = np.linspace(1.0, 0.0, count)
    starts = np.arange(_FIRST_START, count - _LAST_START + 1)
    a = np.array(_DECAY_ENDS)
    b = (1.0 - a) / y[starts, np.newaxis]
    ones = [_around(y**power, starts) for power in range(5)]
    others = [_around(lengths * y**power, starts) for power in range(3)]
    first, second = (
        others[p][0] + a * others[p][1] + b * others[p + 1][1] for p in range(2)
    )  # products of the lengths and a shape's two columns; of these with each other:
    s, t, u = (
        ones[p][0] + a * a * ones[p][1] + 2.0 * a * b * ones[p + 1][1] + b * b * ones[p + 2][1]
        for p in range(3)
    )
    explained = (u * first**2 - 2.0 * t * first * second + s * second**2) / (s * u - t * t)
    squared = (lengths * lengths).sum(axis=1)[:, np.newaxis, np.newaxis]
    return (squared - explained).reshape(len(lengths), -1)


def _around(values: FloatArray, starts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Sums of (…, M) before each start and from it on, (…, starts, 1) each."""
    before = np.cumsum(values, axis=-1)[..., starts - 1]
    after = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1][..., starts]
    return before[..., np.newaxis], after[..., np.newaxis]


@lru_cache(maxsize=64)
def _without_plateau(count: int) -> FloatArray:
    """Return the bases of the flat shape and of cosines, (S, 2, M)."""
    x = np.linspace(0.0, 1.0, count)
    half_wave = (1.0 + np.cos(np.pi * x)) / 2
    cosines = [end + (1 - end) * half_wave for end in _COSINE_ENDS]
    return _bases(np.array([x**0, *cosines]), x)


def _bases(shapes: FloatArray, x: FloatArray) -> FloatArray:
    """(S, 2, M) orthonormal columns that span each shape, (S, M), and x times it."""
    columns = np.stack([shapes, shapes * x], axis=2)
    return np.ascontiguousarray(np.linalg.qr(columns)[0].swapaxes(1, 2))
