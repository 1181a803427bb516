"""All figures of one group, from the sums over its weights.

Letters: K checkpoints of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.indicators import (
    INDICATORS,
    indicators,
    indicators_between,
    null_values,
)
from pipeline.numerics.joint import between_paths, own_basis, transformed
from pipeline.numerics.path import path, with_absent
from pipeline.numerics.spectrum import Spectrum, shares, spectrum, spectrum_between
from pipeline.numerics.trajectory import Trajectory, present_increments

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class GroupSums:
    """Sums over the weights of one group."""

    increments: Array
    """(K, K) Gram matrix in the increment basis."""
    digests: NDArray[np.uint64]
    """(K, words): equal where all values of the group are."""
    absent: NDArray[np.bool_]
    """(K,) checkpoints with a value that is not finite."""
    rounding: Array
    """(K,) rounding energies."""


@dataclass(frozen=True, eq=False, slots=True)
class Times:
    """When the checkpoints were saved; (K,) each, NaN where unknown."""

    steps: Array
    elapsed: Array


@dataclass(frozen=True, eq=False, slots=True)
class Figures:
    """All figures of one group; NaN is NULL."""

    dots: Array
    relative_dots: Array
    squared_distances: Array
    path: dict[str, Array]
    indicators: dict[str, float]
    null_values: dict[str, float]
    spectrum: dict[str, tuple[Array, Array]]
    """Basis → eigenvalues and their shares, in order of rank."""
    projection: Array
    paths: tuple[Figures, ...] = ()
    """Of several paths: the figures of each alone."""


def figures(sums: GroupSums | None, times: Times, firsts: tuple[int, ...] = (0,)) -> Figures:
    """Return a group's figures; all are undefined if a tile of it was lost (`sums` is None).

    Args:
        firsts: where each path begins, if there are several.
    """
    if len(firsts) > 1:
        return _of_paths(sums, times, firsts)
    count = len(times.steps)
    absent = np.ones(count, bool) if sums is None else sums.absent
    present = np.flatnonzero(~absent)
    kept = np.zeros((count, count)) if sums is None else sums.increments
    labels = np.zeros(count, np.int64) if sums is None else _labels(sums.digests)
    rounding = np.zeros(count) if sums is None else sums.rounding
    trajectory = Trajectory.from_increments(present_increments(kept, absent), labels[present])
    found = spectrum(trajectory)
    when = (times.elapsed[present], times.steps[present], present.astype(float))
    return Figures(
        dots=_spread(trajectory.dots, absent),
        relative_dots=_spread(trajectory.relative_dots, absent),
        squared_distances=_spread(trajectory.squared_distances, absent),
        path=with_absent(path(trajectory, rounding[present]), absent),
        indicators=indicators(trajectory, *when, centered=found.eigenvalues["centered"]),
        null_values=null_values(trajectory, *when),
        spectrum=_ranked(found) if len(present) else {},
        projection=_projection(found, absent),
    )


def _of_paths(sums: GroupSums | None, times: Times, firsts: tuple[int, ...]) -> Figures:
    """Return each path's own figures side by side, and what is known between paths."""
    count = len(times.steps)
    stops = [*firsts[1:], count]
    own = [
        figures(
            None if sums is None else of_path(sums, firsts, number),
            Times(times.steps[first:stop], times.elapsed[first:stop]),
        )
        for number, (first, stop) in enumerate(zip(firsts, stops, strict=True))
    ]
    absent = np.ones(count, bool) if sums is None else sums.absent
    kept = np.zeros((count, count)) if sums is None else sums.increments
    dots, relative_dots, squared_distances = between_paths(kept, firsts, absent)
    if sums is not None:
        labels = _labels(sums.digests)
        squared_distances[(labels == labels[:, np.newaxis]) & ~np.isnan(squared_distances)] = 0.0
    for number, (first, stop) in enumerate(zip(firsts, stops, strict=True)):
        block = slice(first, stop), slice(first, stop)
        dots[block] = own[number].dots
        relative_dots[block] = own[number].relative_dots
        squared_distances[block] = own[number].squared_distances
    present = np.ix_(~absent, ~absent)
    found = spectrum_between(dots[present], relative_dots[present], squared_distances[present])
    return Figures(
        dots=dots,
        relative_dots=relative_dots,
        squared_distances=squared_distances,
        path={
            column: np.concatenate([figures.path[column] for figures in own])
            for column in own[0].path
        },
        indicators=indicators_between(
            dots[present], relative_dots[present], found.eigenvalues["centered"]
        ),
        null_values=dict.fromkeys(INDICATORS, np.nan),
        spectrum=_ranked(found) if not absent.all() else {},
        projection=_projection(found, absent),
        paths=tuple(own),
    )


def of_path(sums: GroupSums, firsts: tuple[int, ...], number: int) -> GroupSums:
    """Return the sums over one path's own checkpoints, in its own increment basis."""
    count = len(sums.absent)
    rows = own_basis(firsts, count, number)
    own = slice(firsts[number], firsts[number] + len(rows))
    return GroupSums(
        transformed(rows, sums.increments),
        sums.digests[own],
        sums.absent[own],
        sums.rounding[own],
    )


def _labels(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)


def _spread(matrix: Array, absent: NDArray[np.bool_]) -> Array:
    if not absent.any():
        return matrix
    spread = np.full((len(absent), len(absent)), np.nan)
    spread[np.ix_(~absent, ~absent)] = matrix
    return spread


def _ranked(found: Spectrum) -> dict[str, tuple[Array, Array]]:
    return {basis: (values, shares(values)) for basis, values in found.eigenvalues.items()}


def _projection(found: Spectrum, absent: NDArray[np.bool_]) -> Array:
    projection = np.full((len(absent), 3), np.nan)
    projection[~absent] = found.projection
    return projection
