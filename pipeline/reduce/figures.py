"""All figures of many groups at once, from the sums over their weights, with their standard errors.

Shapes: G = groups, N = checkpoints of the run, K = those present in some groups, I = indicators,
H = scales of turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.numerics.indicators import (
    INDICATORS,
    SQUARES,
    WITHOUT_ERROR,
    differ_from_null,
    indicators,
    indicators_between,
)
from pipeline.numerics.jackknife import Jackknife
from pipeline.numerics.joint import between_paths, increments_between, transformed
from pipeline.numerics.null import random_walk, straight_line
from pipeline.numerics.path import COLUMNS, path, update_angles, with_absent
from pipeline.numerics.phases import jumps
from pipeline.numerics.spectrum import (
    BASES,
    NUM_COMPONENTS,
    Spectrum,
    shares,
    spectrum,
    spectrum_between,
)
from pipeline.numerics.stack import diagonal, first_equal
from pipeline.numerics.trajectory import Trajectory, cosines, present_increments
from pipeline.numerics.windows import When
from pipeline.reduce.sub_paths import NO_PARTS, PartFigures, Parts, PathParts, undefined_parts

Array = NDArray[np.float64]
STACK_BYTES = 2 << 20
"""Of the sums worked on together. A stack of 24 checkpoints took 290 µs of CPU a group with 0.5 MiB,
246 with 2 and 243 with 4, of 154 checkpoints 7.6 ms with 0.5, 6.5 with 2 and 6.7 with 4; what is made of
them takes some 15 times as much memory, for each thread."""
_SQUARES = np.array([INDICATORS.index(name) for name in SQUARES])
_WITHOUT_ERROR = np.array([INDICATORS.index(name) for name in WITHOUT_ERROR])


@dataclass(frozen=True, eq=False, slots=True)
class GroupSums:
    """Sums over the weights of one group."""

    increments: Array
    """(N, N) Gram matrix in the increment basis."""
    digests: NDArray[np.uint64]
    """(N, words): equal where all values of the group are."""
    absent: NDArray[np.bool_]
    """(N,) checkpoints with a value that is not finite."""
    straight: Array
    """(2, H, N) sums over parts for straight paths, rounded, as `path` takes them."""
    changes: Mapping[int, Array] = field(default_factory=dict)
    """Jackknife fold → (N, N) what leaving it out would change; none if every weight was read."""
    errors_known: bool = True
    """False where too little was read to tell how uncertain it is."""
    folds: int = 0
    """Jackknife folds, those that change nothing included."""
    tables: Mapping[str, Mapping[str, NDArray[Any]]] = field(
        default_factory=dict[str, Mapping[str, NDArray[Any]]]
    )
    """What each statistic on request keeps of the group, by its name."""


@dataclass(frozen=True, eq=False, slots=True)
class Times:
    """When the checkpoints were saved; (N,) each, NaN where unknown."""

    steps: Array
    elapsed: Array

    def of(self, checkpoints: slice) -> Times:
        """Return those of one path."""
        return Times(self.steps[checkpoints], self.elapsed[checkpoints])


@dataclass(frozen=True, eq=False, slots=True)
class Figures:
    """All figures of G groups; NaN is NULL."""

    increments: Array
    """(G, N, N), like all down to the errors of relative cosines: row 0 is the first checkpoint."""
    dots: Array
    relative_dots: Array
    squared_distances: Array
    cosine_errors: Array
    relative_cosine_errors: Array
    path: dict[str, Array]
    """Column → (G, N)."""
    indicators: Array
    """(G, I), in the order of `INDICATORS`, like all down to the differences."""
    indicator_errors: Array
    null_values: Array
    differs_from_null: NDArray[np.bool_]
    """Means nothing where the value or its null value is NaN."""
    eigenvalues: dict[str, Array]
    """Basis → (G, N), in order of rank; NaN for ranks that there are not."""
    shares: dict[str, Array]
    """The same of each eigenvalue's share of their sum."""
    projection: Array
    """(G, N, 3)."""
    labels: NDArray[np.integer[Any]]
    """(G, N) equal where the stored values are."""
    absent: NDArray[np.bool_]
    """(G, N) where a value is not finite."""
    known: NDArray[np.bool_]
    """(G,) false where nothing can be said of the group."""
    jumps: Array
    """(G, N) how much longer increments become at each checkpoint, in logarithms; 0 where nothing changes."""
    parts: list[PathParts]
    """Of each group; empty where the parts of its path are not looked at."""
    paths: tuple[Figures, ...] = ()
    """Of several paths: the figures of each alone."""


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """The sums of G groups with the same checkpoints absent and as many changes each."""

    increments: Array
    """(G, N, N)"""
    labels: NDArray[np.integer[Any]]
    """(G, N) equal where the stored values are."""
    absent: NDArray[np.bool_]
    """(N,)"""
    straight: Array
    """(G, 2, H, N)"""
    changes: Sequence[Sequence[Array]]
    """For each replicate, the (N, N) change of every group."""
    errors_known: NDArray[np.bool_]
    """(G,)"""
    folds: NDArray[np.int64]
    """(G,) jackknife folds, those that change nothing included."""
    in_parts: NDArray[np.bool_]
    """(G,) where the parts of the path are looked at."""

    def replicates(self) -> Iterator[tuple[int, Array]]:
        """Yield the sums without one jackknife fold each: C replicates, (C G, N, N), at a time."""
        at_once = max(1, STACK_BYTES // self.increments.nbytes)
        for first in range(0, len(self.changes), at_once):
            changes = np.array(self.changes[first : first + at_once])
            changes += self.increments
            yield len(changes), changes.reshape(-1, *changes.shape[2:])

    def scaled_by_what_is_known(self, errors: Array) -> Array:
        """Return standard errors, (G, ...), NaN where none can be told."""
        errors[~self.errors_known] = np.nan
        return errors

    def of_path(self, basis: Basis, checkpoints: slice) -> _Sums:
        """Return the sums over one path's own checkpoints, in its own increment basis."""
        rows = basis.alone(checkpoints)
        return replace(
            self,
            increments=transformed(rows, self.increments),
            labels=self.labels[:, checkpoints],
            absent=self.absent[checkpoints],
            straight=self.straight[..., checkpoints],
            changes=[
                [transformed(rows, change) for change in of_group] for of_group in self.changes
            ],
        )


def figures(
    sums: Sequence[GroupSums | None],
    times: Times,
    basis: Basis,
    parts: Parts = NO_PARTS,
    in_parts: Sequence[bool] | None = None,
) -> Figures:
    """Return the figures of groups; those of a group are undefined if a tile of it was lost (None).

    Groups that are alike in what is absent and in how many replicates they have are worked on
    together. The figures of a group do not depend, to the bit, on the others.

    Args:
        parts: of paths, that are looked at by themselves.
        in_parts: of which groups; default: of none.
    """
    looked_at = np.array(in_parts or [False] * len(sums), bool)
    alike: dict[tuple[bytes, int] | None, list[int]] = defaultdict(list)
    for number, group in enumerate(sums):
        kind = None if group is None else (group.absent.tobytes(), len(group.changes))
        alike[kind].append(number)
    of_patterns = []
    for kind, numbers in alike.items():
        of_kind = [group for number in numbers if (group := sums[number]) is not None]
        of_patterns.append(
            _undefined(looked_at[numbers], basis, parts)
            if kind is None
            else _of(_stacked(of_kind, looked_at[numbers]), times, basis, parts)
        )
    if len(of_patterns) == 1:
        return of_patterns[0]
    return _merged(of_patterns, np.argsort(np.concatenate(list(alike.values()))))


def _of(sums: _Sums, times: Times, basis: Basis, parts: Parts) -> Figures:
    if len(basis.paths) == 1:
        return _of_path(sums, times, parts)
    return _of_paths(sums, times, basis, parts)


def _stacked(sums: Sequence[GroupSums], in_parts: NDArray[np.bool_]) -> _Sums:
    return _Sums(
        increments=np.stack([group.increments for group in sums]),
        labels=first_equal(np.stack([group.digests for group in sums])),
        absent=sums[0].absent,
        straight=np.stack([group.straight for group in sums]),
        changes=list(zip(*(group.changes.values() for group in sums), strict=True)),
        errors_known=np.array([group.errors_known for group in sums]),
        folds=np.array([group.folds for group in sums]),
        in_parts=in_parts,
    )


def _of_path(sums: _Sums, times: Times, parts: Parts) -> Figures:
    absent = sums.absent
    present = np.flatnonzero(~absent)
    if not present.size:
        nothing = _undefined(sums.in_parts, Basis((0,), absent.size), parts, present)
        return replace(nothing, labels=sums.labels, known=~nothing.known)
    when = When(times.elapsed[present], times.steps[present], present.astype(float))
    trajectory = _trajectory(sums, sums.increments)
    spectra = spectrum(trajectory)
    cosine, relative_cosine = cosines(trajectory.dots), cosines(trajectory.relative_dots)
    changes = jumps(trajectory, when.elapsed, when.numbers)
    values = indicators(
        trajectory,
        *when,
        centered=spectra.eigenvalues["centered"],
        relative=spectra.eigenvalues["relative"],
        cosine=cosine,
        relative_cosine=relative_cosine,
        changes=changes,
    )
    columns = path(trajectory, when[0], sums.straight[..., present])
    known = (values, cosine, relative_cosine, columns["update_angle_deg"])
    spreads = [Jackknife(figure, sums.folds) for figure in known]
    squared_lengths = diagonal(trajectory.increments)
    nulls = random_walk(squared_lengths, *when)
    in_parts = np.flatnonzero(sums.in_parts)
    of_parts = PartFigures(parts, trajectory, when, in_parts, sums.folds, changes, (values, nulls))
    for count, increments in sums.replicates():
        replicate = _trajectory(sums, increments)
        cosine, relative_cosine = cosines(replicate.dots), cosines(replicate.relative_dots)
        again = indicators(replicate, *when, cosine=cosine, relative_cosine=relative_cosine)
        of_parts.add(count, replicate, again)
        replicated = (again, cosine, relative_cosine, update_angles(replicate))
        for spread, figure in zip(spreads, replicated, strict=True):
            spread.add(figure.reshape(count, -1, *figure.shape[1:]))
    values, errors = _with_errors(values, spreads[0], sums)
    cosine_errors, relative_cosine_errors, angle_errors = (
        sums.scaled_by_what_is_known(spread.standard_errors()) for spread in spreads[1:]
    )
    straight = straight_line(squared_lengths, *when)
    return Figures(
        increments=_spread(trajectory.increments, absent),
        dots=_spread(trajectory.dots, absent),
        relative_dots=_spread(trajectory.relative_dots, absent),
        squared_distances=_spread(trajectory.squared_distances, absent),
        cosine_errors=_spread(cosine_errors, absent),
        relative_cosine_errors=_spread(relative_cosine_errors, absent),
        path=with_absent(columns | {"update_angle_stderr_deg": angle_errors}, absent),
        indicators=values,
        indicator_errors=errors,
        null_values=nulls,
        differs_from_null=differ_from_null(values, nulls, straight, errors),
        eigenvalues=_ranked(spectra.eigenvalues, absent),
        shares=_ranked(
            {basis: shares(each) for basis, each in spectra.eigenvalues.items()}, absent
        ),
        projection=_projection(spectra, absent),
        labels=sums.labels,
        absent=np.tile(absent, (len(values), 1)),
        known=np.ones(len(values), bool),
        jumps=with_absent({"jumps": changes}, absent)["jumps"],
        parts=of_parts.of_groups(sums.errors_known),
    )


def _of_paths(sums: _Sums, times: Times, basis: Basis, parts: Parts) -> Figures:
    """Return each path's own figures side by side, and what is known between paths."""
    of_paths = tuple(
        _of_path(sums.of_path(basis, each), times.of(each), parts.of(each)) for each in basis.paths
    )
    absent = sums.absent
    nothing = replace(
        _undefined(sums.in_parts, basis, parts),
        labels=sums.labels,
        known=np.ones(len(sums.labels), bool),
        jumps=np.concatenate([alone.jumps for alone in of_paths], axis=1),
        parts=_parts_of_paths(of_paths, basis),
        paths=of_paths,
    )
    if absent.all():
        return nothing
    between = between_paths(sums.increments, basis, absent)
    dots, relative_dots, squared_distances = between
    spreads = [Jackknife(known, sums.folds) for known in _figured_between(between, absent)]
    for count, increments in sums.replicates():
        again = between_paths(increments, basis, absent)
        for spread, figure in zip(spreads, _figured_between(again, absent), strict=True):
            spread.add(figure.reshape(count, -1, *figure.shape[1:]))
    cosine_errors, relative_cosine_errors = (
        _spread(sums.scaled_by_what_is_known(spread.standard_errors()), absent)
        for spread in spreads[1:]
    )
    equal = sums.labels[:, :, np.newaxis] == sums.labels[:, np.newaxis]
    squared_distances[equal & ~np.isnan(squared_distances)] = 0.0
    for each, alone in zip(basis.paths, of_paths, strict=True):
        block = slice(None), each, each
        dots[block] = alone.dots
        relative_dots[block] = alone.relative_dots
        squared_distances[block] = alone.squared_distances
        cosine_errors[block] = alone.cosine_errors
        relative_cosine_errors[block] = alone.relative_cosine_errors
    known = [_present(matrices, absent) for matrices in (dots, relative_dots, squared_distances)]
    spectra = spectrum_between(*known)
    values = indicators_between(cosines(known[0]), cosines(known[1]), spectra)
    values, errors = _with_errors(values, spreads[0], sums)
    return replace(
        nothing,
        increments=increments_between(sums.increments, basis, absent),
        dots=dots,
        relative_dots=relative_dots,
        squared_distances=squared_distances,
        cosine_errors=cosine_errors,
        relative_cosine_errors=relative_cosine_errors,
        path={
            column: np.concatenate([alone.path[column] for alone in of_paths], axis=1)
            for column in COLUMNS
        },
        indicators=values,
        indicator_errors=errors,
        eigenvalues=nothing.eigenvalues | _ranked(spectra.eigenvalues, absent),
        shares=nothing.shares
        | _ranked({basis: shares(each) for basis, each in spectra.eigenvalues.items()}, absent),
        projection=_projection(spectra, absent),
        absent=np.tile(absent, (len(values), 1)),
    )


def _parts_of_paths(of_paths: Sequence[Figures], basis: Basis) -> list[PathParts]:
    """Return the parts of the paths of each group."""
    of_groups = zip(*(alone.parts for alone in of_paths), strict=True)
    return [PathParts.joined(of_group, basis.firsts) for of_group in of_groups]


def _figured_between(
    between: tuple[Array, Array, Array], absent: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """Return the figures between paths that have a standard error."""
    dots, relative_dots, squared_distances = (_present(matrices, absent) for matrices in between)
    spectra = spectrum_between(dots, relative_dots, squared_distances)
    cosine, relative_cosine = cosines(dots), cosines(relative_dots)
    return indicators_between(cosine, relative_cosine, spectra), cosine, relative_cosine


def _with_errors(values: Array, spread: Jackknife, sums: _Sums) -> tuple[Array, Array]:
    """Return the indicators, less their bias where it is known, and their standard errors."""
    errors = sums.scaled_by_what_is_known(spread.standard_errors())
    if sums.changes:
        errors[:, _WITHOUT_ERROR] = np.nan
        biased = np.ix_(np.flatnonzero(sums.errors_known), _SQUARES)
        values = values.copy()
        values[biased] = spread.corrected()[biased]
    return values, errors


def _trajectory(sums: _Sums, increments: Array) -> Trajectory:
    """Return the trajectories of the groups, or of several replicates of all of them."""
    present = present_increments(increments, sums.absent)
    labels = np.tile(sums.labels[:, ~sums.absent], (len(increments) // len(sums.labels), 1))
    return Trajectory.from_increments(present, labels)


def _undefined(
    in_parts: NDArray[np.bool_],
    basis: Basis,
    parts: Parts,
    present: NDArray[np.int64] | None = None,
) -> Figures:
    """Return the figures of groups, (G,), of which nothing is known.

    Args:
        present: checkpoints that parts are made of; default: all.
    """
    groups, count = len(in_parts), basis.count
    if present is None:
        present = np.arange(count)
    paths = tuple(
        _undefined(in_parts, Basis((0,), each.stop - each.start), parts.of(each))
        for each in (basis.paths if len(basis.paths) > 1 else ())
    )
    matrix, column, row = (
        np.full((groups, *shape), np.nan)
        for shape in ((count, count), (count,), (len(INDICATORS),))
    )
    return Figures(
        increments=matrix,
        dots=matrix,
        relative_dots=matrix,
        squared_distances=matrix,
        cosine_errors=matrix,
        relative_cosine_errors=matrix,
        path=dict.fromkeys(COLUMNS, column),
        indicators=row,
        indicator_errors=row,
        null_values=row,
        differs_from_null=np.zeros(row.shape, bool),
        eigenvalues=dict.fromkeys(BASES, column),
        shares=dict.fromkeys(BASES, column),
        projection=np.full((groups, count, NUM_COMPONENTS), np.nan),
        labels=np.zeros((groups, count), int),
        absent=np.ones((groups, count), bool),
        known=np.zeros(groups, bool),
        jumps=column,
        parts=_parts_of_paths(paths, basis) if paths else undefined_parts(parts, in_parts, present),
        paths=paths,
    )


def _merged(of_patterns: Sequence[Figures], order: NDArray[np.int64]) -> Figures:
    """Return several figures as one, the groups in another order."""

    def merged(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: merged([value[name] for value in values]) for name in values[0]}
        if isinstance(values[0], tuple):
            return tuple(_merged(each, order) for each in zip(*values, strict=True))
        if isinstance(values[0], list):
            of_groups = list(chain.from_iterable(values))
            return [of_groups[number] for number in order]
        return np.concatenate(values)[order]

    names = [entry.name for entry in fields(Figures)]
    return Figures(
        **{name: merged([getattr(each, name) for each in of_patterns]) for name in names}
    )


def _present(matrices: Array, absent: NDArray[np.bool_]) -> Array:
    """Return matrices of the present checkpoints alone."""
    return matrices[np.ix_(np.ones(len(matrices), bool), ~absent, ~absent)]


def _spread(matrices: Array, absent: NDArray[np.bool_]) -> Array:
    """Return matrices of the present checkpoints as (G, N, N), NaN for absent ones."""
    if not absent.any():
        return matrices
    spread = np.full((len(matrices), absent.size, absent.size), np.nan)
    spread[np.ix_(np.ones(len(matrices), bool), ~absent, ~absent)] = matrices
    return spread


def _ranked(by_basis: dict[str, Array], absent: NDArray[np.bool_]) -> dict[str, Array]:
    ranked = {}
    for basis, values in by_basis.items():
        ranked[basis] = np.full((len(values), absent.size), np.nan)
        ranked[basis][:, : values.shape[1]] = values
    return ranked


def _projection(spectra: Spectrum, absent: NDArray[np.bool_]) -> Array:
    projection = np.full((len(spectra.projection), absent.size, NUM_COMPONENTS), np.nan)
    projection[:, ~absent] = spectra.projection
    return projection
