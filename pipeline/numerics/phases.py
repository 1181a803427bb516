"""Where the size of the increments jumps: the changes that divide a path into phases.

A change is judged by the logarithms y of the lengths of the increments, and by the cosines u of
neighbours. Increments of zero are left out. Nothing is judged across the ends of a stretch, a run of
increments over equal times: of a logarithmic schedule nothing.

Shapes: G = groups in the stack, K = checkpoints that are present, M = increments of a stretch or of a
segment of it, B = M - 5 boundaries with three increments on both sides.

Source: docs/method-2.md, section 5.5. The thresholds are those found there on 159 trainings and 14,400
random walks; benchmarks/results/phases.md repeats both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.numerics.stack import FloatArray, IntArray, Selection, diagonal, patterns
from pipeline.numerics.trajectory import Trajectory

LEAST_WEIGHTS = 1000
"""Of a group: the increments of fewer scatter by chance."""
LEAST_IN_PHASE = 3
"""Increments on each side of a boundary; as many, or cosines, are compared by their medians."""
LEAST_INCREMENTS = 2 * LEAST_IN_PHASE
"""Of a stretch."""
EQUAL_TIMES = 0.01
"""By how much the times of a stretch may differ from its first, relative."""
_FITTED = 4
"""Increments on each side that a line is fitted to: with 5 or 6, 7 and 16 of 88 trainings without a
change showed one."""
_SIGMA = 1.4826
"""Times the median absolute deviation: the standard deviation of normal values."""
_LEAST_SCATTER = 0.02
_MOST_SCATTER = 3.0
"""Times the scatter of the stretch, for that of the eight increments at a boundary."""
_LARGE_JUMP, _SMALL_JUMP, _LEAST_SHIFT = 0.6, 0.2, 0.1
"""Least excess of a change alone; of one where the cosines change too, and by how much."""
_SCATTERS = 5.0
"""Times its scatter that either must reach as well."""


@dataclass(frozen=True, eq=False, slots=True)
class Moves:
    """The increments that are not zero of groups in which the same ones are."""

    groups: Selection
    ends: IntArray
    """The present checkpoint that each leads to."""
    lengths: FloatArray
    """(groups, increments)"""
    cosines: FloatArray
    """(groups, increments - 1), of each increment and the next one."""
    stretches: list[slice]


def moves(trajectory: Trajectory, elapsed: FloatArray, numbers: FloatArray) -> Iterator[Moves]:
    """Yield the increments of the groups; arguments are as for `jumps`."""
    times = numbers if np.isnan(elapsed).any() else elapsed
    squared = diagonal(trajectory.increments)
    moving = squared > 0
    moving[:, :1] = False
    for groups, selection in patterns(moving):
        ends = np.arange(len(times))[selection]
        lengths = np.sqrt(squared[groups][:, ends])
        products = trajectory.increments[groups][:, ends[:-1], ends[1:]]
        cosines = np.clip(products / (lengths[:, :-1] * lengths[:, 1:]), -1.0, 1.0)
        yield Moves(groups, ends, lengths, cosines, _stretches(times[ends] - times[ends - 1]))


def jumps(trajectory: Trajectory, elapsed: FloatArray, numbers: FloatArray) -> FloatArray:
    """(G, K) by what factor increments are longer after a checkpoint than before: its logarithm.

    0 where nothing changes, NaN where nothing can be judged. With zero increments in between, the
    change is at the last checkpoint before the first longer or shorter one.

    Args:
        trajectory: K present checkpoints.
        elapsed: (K,), training time in steps; where any is NaN all checkpoints of the run count as
            equally far apart.
        numbers: (K,), the run's number k of each checkpoint.
    """
    result = np.full(trajectory.same.shape, np.nan)
    for of_kind in moves(trajectory, elapsed, numbers):
        rows = np.full((len(of_kind.lengths), len(numbers)), np.nan)
        for stretch in of_kind.stretches:
            places = of_kind.ends[stretch] - 1
            rows[:, places[LEAST_IN_PHASE : 1 - LEAST_IN_PHASE]] = 0.0
            logarithms = np.log(of_kind.lengths[:, stretch])
            cosines = of_kind.cosines[:, stretch][:, : logarithms.shape[1] - 1]
            for groups, boundary, jump in _changes(logarithms, cosines):
                rows[groups, places[boundary]] = jump
        result[of_kind.groups] = rows
    return result


def phases(changes: FloatArray) -> list[tuple[int, int]]:
    """Return the first and the last checkpoint of each phase of one group; none if nothing was judged.

    A phase ends with the checkpoint at which the next one begins, so that each increment is in one.

    Args:
        changes: (K,), of `jumps`.
    """
    if np.isnan(changes).all():
        return []
    bounds = [0, *np.flatnonzero(np.nan_to_num(changes)).tolist(), len(changes) - 1]
    return list(pairwise(bounds))


def _stretches(gaps: FloatArray) -> list[slice]:
    """Return the runs of at least six increments over equal times, given the time of each."""
    stretches, first = list[slice](), 0
    for at in range(1, len(gaps) + 1):
        if at == len(gaps) or abs(gaps[at] - gaps[first]) > EQUAL_TIMES * gaps[first]:
            if at - first >= LEAST_INCREMENTS and gaps[first] > 0:
                stretches.append(slice(first, at))
            first = at
    return stretches


def _changes(y: FloatArray, u: FloatArray) -> Iterator[tuple[IntArray, int, FloatArray]]:
    """Yield groups, the increment that begins a new size, and by how much; of one stretch.

    Args:
        y: (G, M), logarithms of lengths.
        u: (G, M - 1), cosines of neighbours.
    """
    scatter, scatter_u = _scatter(y), _scatter(u)
    pending = [(np.arange(len(y)), 0, y.shape[1])]
    while pending:
        groups, first, stop = pending.pop()
        jump = _judged(
            y[groups, first:stop],
            u[groups, first : stop - 1],
            scatter[groups],
            scatter_u[groups],
        )
        largest = np.abs(jump).argmax(axis=1)
        sizes = np.take_along_axis(jump, largest[:, np.newaxis], axis=1)[:, 0]
        for place in np.unique(largest[sizes != 0]):
            chosen = (largest == place) & (sizes != 0)
            boundary = first + LEAST_IN_PHASE + int(place)
            yield groups[chosen], boundary, sizes[chosen]
            pending += [
                (groups[chosen], *part)
                for part in ((first, boundary), (boundary, stop))
                if part[1] - part[0] >= LEAST_INCREMENTS
            ]


def _judged(y: FloatArray, u: FloatArray, scatter: FloatArray, scatter_u: FloatArray) -> FloatArray:
    """(G, B) the signed excess at each boundary of a segment that is a change, 0 at the others."""
    left, right = _beside(y)
    step = np.median(right, axis=2) - np.median(left, axis=2)
    before, bend_before, left_over_before, count_before = _lines(y)
    after, bend_after, left_over_after, count_after = (
        values[..., ::-1] for values in _lines(y[:, ::-1])
    )
    jump = after - before
    bend = np.abs(bend_after + bend_before)  # the slopes after are of the reversed order
    excess = np.maximum(np.abs(jump) - bend / 2, 0.0)
    excess[(np.sign(step) != np.sign(jump)) | (np.abs(step) < np.abs(jump) / 2)] = 0.0
    freedom = count_before + count_after - 4
    residual = np.sqrt((left_over_before + left_over_after) / freedom)
    scatter, scatter_u = scatter[:, np.newaxis], scatter_u[:, np.newaxis]
    noise = _SCATTERS * np.maximum(scatter, np.minimum(_MOST_SCATTER * scatter, residual))
    shift = np.abs(_shifts(u))
    shifted = shift >= np.maximum(_LEAST_SHIFT, _SCATTERS * scatter_u)
    change = (excess >= noise) & ((excess >= _LARGE_JUMP) | (shifted & (excess >= _SMALL_JUMP)))
    return np.where(change, np.copysign(excess, jump), 0.0)


def _beside(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(G, B, 3) each, the three nearest on both sides of each boundary."""
    threes = sliding_window_view(y, LEAST_IN_PHASE, axis=1)
    return threes[:, :-LEAST_IN_PHASE], threes[:, LEAST_IN_PHASE:]


def _lines(y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """Lines through the up to four nearest before each boundary, (G, B) but for the last.

    Their value half a step on, their slope, the squares they leave, and how many points each has,
    (B,).
    """
    boundaries = y.shape[1] - 2 * LEAST_IN_PHASE + 1
    value, slope, left_over = np.empty((3, len(y), boundaries))
    counts = np.minimum(np.arange(LEAST_IN_PHASE, LEAST_IN_PHASE + boundaries), _FITTED)
    for count in np.unique(counts):
        places = counts == count
        stops = LEAST_IN_PHASE + np.flatnonzero(places)
        points = sliding_window_view(y, count, axis=1)[:, stops - count]
        x = np.arange(count) - (count - 1) / 2
        mean = points.sum(axis=2) / count
        rise = (points * x).sum(axis=2) / np.sum(x * x)
        rest = points - mean[..., np.newaxis] - rise[..., np.newaxis] * x
        value[:, places] = mean + rise * (count / 2)
        slope[:, places] = rise
        left_over[:, places] = (rest * rest).sum(axis=2)
    return value, slope, left_over, counts


def _shifts(u: FloatArray) -> FloatArray:
    """(G, B) by how much the median of the up to three nearest cosines changes, the one across left out."""
    padded = np.pad(u, ((0, 0), (1, 1)), constant_values=np.nan)
    medians = np.nanmedian(sliding_window_view(padded, LEAST_IN_PHASE, axis=1), axis=2)
    apart = LEAST_IN_PHASE + 1
    return medians[:, apart:] - medians[:, :-apart]


def _scatter(values: FloatArray) -> FloatArray:
    """(G,) standard deviation of what (G, M) scatter about a curve, by their second differences."""
    bends = np.diff(values, n=2, axis=1)
    middle = np.median(bends, axis=1, keepdims=True)
    deviation = np.median(np.abs(bends - middle), axis=1)
    return np.maximum(_SIGMA * deviation / np.sqrt(6.0), _LEAST_SCATTER)
