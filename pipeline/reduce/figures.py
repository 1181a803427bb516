"""All figures of one group, from the sums over its weights, with their standard errors.

Letters: K checkpoints of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.indicators import (
    INDICATORS,
    SQUARES,
    WITHOUT_ERROR,
    differs_from_null,
    indicators,
    indicators_between,
    null_values,
)
from pipeline.numerics.jackknife import Jackknife
from pipeline.numerics.joint import between_paths, own_basis, transformed
from pipeline.numerics.path import path, update_angles, with_absent
from pipeline.numerics.spectrum import Spectrum, shares, spectrum, spectrum_between
from pipeline.numerics.trajectory import (
    Trajectory,
    cosines,
    present_increments,
    straight_line,
)

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
    changes: Mapping[int, Array] = field(default_factory=dict)
    """Jackknife group → (K, K) what leaving it out would change; none if every weight was read."""
    errors_known: bool = True
    """False where too little was read to tell how uncertain it is."""
    groups: int = 0
    """Jackknife groups, those that change nothing included."""
    known: bool = True
    """False where nothing can be said: a tile was lost, or nothing has been read yet."""
    tables: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    """What each statistic on request keeps of the group, by its name."""


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
    cosine_errors: Array
    relative_cosine_errors: Array
    path: dict[str, Array]
    indicators: dict[str, float]
    indicator_errors: dict[str, float]
    null_values: dict[str, float]
    differs_from_null: dict[str, bool | None]
    spectrum: dict[str, tuple[Array, Array]]
    """Basis → eigenvalues and their shares, in order of rank."""
    projection: Array
    labels: NDArray[np.int64]
    """(K,) equal where the stored values are."""
    absent: NDArray[np.bool_]
    """(K,) where a value is not finite."""
    known: bool
    """False where nothing can be said of the group."""
    paths: tuple[Figures, ...] = ()
    """Of several paths: the figures of each alone."""


def figures(sums: GroupSums | None, times: Times, firsts: tuple[int, ...] = (0,)) -> Figures:
    """Return a group's figures; all are undefined if a tile of it was lost (`sums` is None).

    Args:
        firsts: where each path begins, if there are several.
    """
    count = len(times.steps)
    if sums is None:
        nothing = np.zeros((count, count))
        digests, absent = np.zeros((count, 1), np.uint64), np.ones(count, bool)
        sums = GroupSums(nothing, digests, absent, np.zeros(count), known=False)
    return _of_path(sums, times) if len(firsts) == 1 else _of_paths(sums, times, firsts)


def _of_path(sums: GroupSums, times: Times) -> Figures:
    absent, labels = sums.absent, _labels(sums.digests)
    present = np.flatnonzero(~absent)
    trajectory = _trajectory(sums.increments, absent, labels)
    found = spectrum(trajectory)
    when = (times.elapsed[present], times.steps[present], present.astype(float))
    values = indicators(trajectory, *when, centered=found.eigenvalues["centered"])
    nulls = null_values(trajectory, *when)
    straight = indicators(straight_line(trajectory), *when)
    columns = path(trajectory, sums.rounding[present])

    def figured(values: dict[str, float], trajectory: Trajectory) -> tuple[Array, ...]:
        return (
            np.array([values[name] for name in INDICATORS]),
            cosines(trajectory.dots),
            cosines(trajectory.relative_dots),
            update_angles(trajectory),
        )

    spreads = [Jackknife(known, sums.groups) for known in figured(values, trajectory)]
    for change in sums.changes.values():
        replicate = _trajectory(sums.increments + change, absent, labels)
        again = figured(indicators(replicate, *when), replicate)
        for spread, replicated in zip(spreads, again, strict=True):
            spread.add(replicated)
    values, errors = _with_errors(values, spreads[0], sums)
    own, cosine, relative_cosine, angle = (
        spread.standard_errors() * (1.0 if sums.errors_known else np.nan) for spread in spreads
    )
    del own
    columns["update_angle_stderr_deg"] = angle
    return Figures(
        dots=_spread(trajectory.dots, absent),
        relative_dots=_spread(trajectory.relative_dots, absent),
        squared_distances=_spread(trajectory.squared_distances, absent),
        cosine_errors=_spread(cosine, absent),
        relative_cosine_errors=_spread(relative_cosine, absent),
        path=with_absent(columns, absent),
        indicators=values,
        indicator_errors=errors,
        null_values=nulls,
        differs_from_null={
            name: None
            if np.isnan(values[name]) or np.isnan(nulls[name])
            else differs_from_null(values[name], nulls[name], straight[name], errors[name])
            for name in INDICATORS
        },
        spectrum=_ranked(found) if len(present) else {},
        projection=_projection(found, absent),
        labels=labels,
        absent=absent,
        known=sums.known,
    )


def _of_paths(sums: GroupSums, times: Times, firsts: tuple[int, ...]) -> Figures:
    """Return each path's own figures side by side, and what is known between paths."""
    count = len(times.steps)
    stops = [*firsts[1:], count]
    own = [
        _of_path(
            of_path(sums, firsts, number), Times(times.steps[first:stop], times.elapsed[first:stop])
        )
        for number, (first, stop) in enumerate(zip(firsts, stops, strict=True))
    ]
    absent, labels = sums.absent, _labels(sums.digests)
    between = between_paths(sums.increments, firsts, absent)
    dots, relative_dots, squared_distances = between
    present = np.ix_(~absent, ~absent)
    spreads = [Jackknife(known, sums.groups) for known in _figured_between(between, present)]
    for change in sums.changes.values():
        again = between_paths(sums.increments + change, firsts, absent)
        for spread, replicated in zip(spreads, _figured_between(again, present), strict=True):
            spread.add(replicated)
    known = 1.0 if sums.errors_known else np.nan
    cosine, relative_cosine = (
        _spread(spread.standard_errors() * known, absent) for spread in spreads[1:]
    )
    squared_distances[(labels == labels[:, np.newaxis]) & ~np.isnan(squared_distances)] = 0.0
    for number, (first, stop) in enumerate(zip(firsts, stops, strict=True)):
        block = slice(first, stop), slice(first, stop)
        dots[block] = own[number].dots
        relative_dots[block] = own[number].relative_dots
        squared_distances[block] = own[number].squared_distances
        cosine[block] = own[number].cosine_errors
        relative_cosine[block] = own[number].relative_cosine_errors
    found = spectrum_between(dots[present], relative_dots[present], squared_distances[present])
    values = indicators_between(
        dots[present], relative_dots[present], found.eigenvalues["centered"]
    )
    values, errors = _with_errors(values, spreads[0], sums)
    return Figures(
        dots=dots,
        relative_dots=relative_dots,
        squared_distances=squared_distances,
        cosine_errors=cosine,
        relative_cosine_errors=relative_cosine,
        path={
            column: np.concatenate([figures.path[column] for figures in own])
            for column in own[0].path
        },
        indicators=values,
        indicator_errors=errors,
        null_values=dict.fromkeys(INDICATORS, np.nan),
        differs_from_null=dict.fromkeys(INDICATORS),
        spectrum=_ranked(found) if not absent.all() else {},
        projection=_projection(found, absent),
        labels=labels,
        absent=absent,
        known=sums.known,
        paths=tuple(own),
    )


def _figured_between(
    between: tuple[Array, Array, Array], present: tuple[NDArray[np.bool_], ...]
) -> tuple[Array, Array, Array]:
    """Return the figures between paths that have a standard error."""
    dots, relative_dots, squared_distances = (matrix[present] for matrix in between)
    centered = spectrum_between(dots, relative_dots, squared_distances).eigenvalues["centered"]
    values = indicators_between(dots, relative_dots, centered)
    return np.array([values[name] for name in INDICATORS]), cosines(dots), cosines(relative_dots)


def _with_errors(
    values: dict[str, float], spread: Jackknife, sums: GroupSums
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the indicators, less their bias where it is known, and their standard errors."""
    errors = dict(zip(INDICATORS, spread.standard_errors().tolist(), strict=True))
    if not sums.errors_known:
        return values, dict.fromkeys(INDICATORS, np.nan)
    if sums.changes:
        corrected = dict(zip(INDICATORS, spread.corrected().tolist(), strict=True))
        values = values | {name: corrected[name] for name in SQUARES}
        errors |= dict.fromkeys(WITHOUT_ERROR, np.nan)
    return values, errors


def _trajectory(
    increments: Array, absent: NDArray[np.bool_], labels: NDArray[np.int64]
) -> Trajectory:
    return Trajectory.from_increments(present_increments(increments, absent), labels[~absent])


def of_path(sums: GroupSums, firsts: tuple[int, ...], number: int) -> GroupSums:
    """Return the sums over one path's own checkpoints, in its own increment basis."""
    count = len(sums.absent)
    rows = own_basis(firsts, count, number)
    own = slice(firsts[number], firsts[number] + len(rows))
    return replace(
        sums,
        increments=transformed(rows, sums.increments),
        digests=sums.digests[own],
        absent=sums.absent[own],
        rounding=sums.rounding[own],
        changes={group: transformed(rows, change) for group, change in sums.changes.items()},
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
