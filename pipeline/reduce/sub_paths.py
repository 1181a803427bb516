"""Figures of parts of paths: of the windows that slide along them, of the stages of the training, and of the
phases between its changes.

Shapes: G = groups of a stack, H = those whose parts are looked at, K = checkpoints that are present,
F = parts of a path, I = indicators that are offered of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.indicators import INDICATORS, SQUARES
from pipeline.numerics.jackknife import Jackknife
from pipeline.numerics.phases import phases
from pipeline.numerics.trajectory import Trajectory
from pipeline.numerics.windows import (
    LEAST_CHECKPOINTS,
    When,
    of_sub_path,
    of_windows,
    offered,
    predictability_of_windows,
)
from pipeline.planning.plan import Plan

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts of paths are looked at."""

    widths: tuple[int, ...] = ()
    """Checkpoints of a window: one begins at every checkpoint that has as many from there on."""
    stages: tuple[int | None, ...] = ()
    """Of every checkpoint; None: it is in no stage."""

    def of(self, checkpoints: slice) -> Parts:
        """Return those of one path."""
        return Parts(self.widths, self.stages[checkpoints])

    @staticmethod
    def asked(plan: Plan) -> Parts:
        """Return those that a plan asks for."""
        return Parts(plan.windows.widths, tuple(each.stage for each in plan.checkpoints))

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first and the last checkpoint of each stage."""
        bounds: list[tuple[int, int]] = []
        first = 0
        for stage, checkpoints in groupby(self.stages):
            stop = first + len(list(checkpoints))
            if stage is not None:
                bounds.append((first, stop - 1))
            first = stop
        return bounds

    @property
    def rows(self) -> tuple[int, int]:
        """How many figures there are of the windows of a path, and of its stages."""
        windows = sum(
            max(0, len(self.stages) - width + 1) * len(offered(width)) for width in self.widths
        )
        return windows, len(self.bounds) * len(INDICATORS)


NO_PARTS = Parts()


@dataclass(frozen=True, eq=False, slots=True)
class SubPaths:
    """Figures of some parts of one group's path; NaN is NULL."""

    first: Indices
    """(F,) checkpoints of the run, like the next."""
    last: Indices
    values: Array
    """(F, I)"""
    null_values: Array

    def after(self, checkpoints: int) -> SubPaths:
        """Return the same of a path that so many checkpoints come before."""
        return SubPaths(
            self.first + checkpoints, self.last + checkpoints, self.values, self.null_values
        )

    @staticmethod
    def joined(several: Sequence[SubPaths]) -> SubPaths:
        """Return the parts of several paths."""
        return SubPaths(
            *(
                np.concatenate([getattr(each, name) for each in several])
                for name in SubPaths.__slots__
            )
        )


@dataclass(frozen=True, eq=False, slots=True)
class PathParts:
    """What is said of the parts of one group's path."""

    windows: Mapping[int, SubPaths] = field(default_factory=dict[int, SubPaths])
    """By their checkpoints; the indicators are those that are offered of so many."""
    stages: SubPaths | None = None
    """With every indicator, like the next."""
    phases: SubPaths | None = None
    """None where no change could be seen: its increments do not follow each other evenly."""

    @staticmethod
    def joined(several: Sequence[PathParts], firsts: Sequence[int]) -> PathParts:
        """Return what is said of several paths, which begin at `firsts`."""

        def joined(of_paths: Sequence[SubPaths | None]) -> SubPaths | None:
            pairs = zip(of_paths, firsts, strict=True)
            moved = [part.after(first) for part, first in pairs if part is not None]
            return SubPaths.joined(moved) if moved else None

        windows: dict[int, SubPaths] = {}
        for width in dict.fromkeys(width for each in several for width in each.windows):
            of_width = joined([each.windows.get(width) for each in several])
            if of_width is not None:
                windows[width] = of_width
        return PathParts(
            windows,
            joined([each.stages for each in several]),
            joined([each.phases for each in several]),
        )


class PartFigures:
    """The figures of parts of the paths of some groups of a stack."""

    def __init__(
        self,
        parts: Parts,
        trajectory: Trajectory,
        when: When,
        groups: Indices,
        folds: Indices,
        changes: Array,
        known: tuple[Array, Array],
    ) -> None:
        """Make them.

        Args:
            trajectory: of G groups.
            when: of its K checkpoints.
            groups: (H,), those whose parts are looked at.
            folds: (G,), jackknife folds of each.
            changes: (G, K), of `phases.jumps`: where phases begin.
            known: (G, I) each, every indicator of the whole paths, and its null value.
        """
        self._groups, self._stack = groups, len(trajectory.same)
        count = len(when.numbers) if len(groups) else 0
        numbers = when.numbers.astype(np.int64)
        self._windows = {width: _Windows(when, width) for width in parts.widths if width <= count}
        bounds = parts.bounds if count else []
        within = [np.flatnonzero((numbers >= a) & (numbers <= b)) for a, b in bounds]
        self._stages = _Sections(when, within, _columns(bounds))
        self._phases: list[tuple[_Kind, Indices]] = []
        for bounds, alike in _with_the_same_phases(changes, groups):
            within = [np.arange(first, last + 1) for first, last in bounds]
            first, last = _columns(bounds)
            self._phases.append((_Sections(when, within, (numbers[first], numbers[last])), alike))
        for kind, members in self._kinds:
            kind.begin(trajectory, members, folds[members], known)

    @property
    def _kinds(self) -> list[tuple[_Kind, Indices]]:
        """Each kind, and the groups that it is of."""
        of_all = [(kind, self._groups) for kind in (*self._windows.values(), self._stages)]
        return of_all + self._phases

    def add(self, count: int, replicates: Trajectory, known: Array) -> None:
        """Add those of `count` jackknife replicates, G groups of each.

        Args:
            known: (count G, I), every indicator of the whole paths.
        """
        offsets = self._stack * np.arange(count)
        for kind, members in self._kinds:
            kind.add(replicates, (offsets[:, np.newaxis] + members).reshape(-1), known, count)

    def of_groups(self, errors_known: NDArray[np.bool_]) -> list[PathParts]:
        """Return them, less their bias where it is known, of each group of the stack."""
        made = [PathParts() for _ in range(self._stack)]
        known = errors_known[self._groups]
        windows = {width: kind.result(known) for width, kind in self._windows.items()}
        stages = self._stages.result(known)
        for row, group in enumerate(self._groups):
            of_group = {width: results[row] for width, results in windows.items()}
            made[group] = PathParts(of_group, stages[row])
        for kind, members in self._phases:
            for group, each in zip(members, kind.result(errors_known[members]), strict=True):
                made[group] = replace(made[group], phases=each)
        return made


def undefined_parts(parts: Parts, kept: NDArray[np.bool_], present: Indices) -> list[PathParts]:
    """Return those of groups, (G,), of which nothing is known but which checkpoints there are."""
    windows: dict[int, SubPaths] = {}
    for width in parts.widths:
        if width <= present.size:
            bounds = present[: 1 - width], present[width - 1 :]
            windows[width] = _undefined(bounds, len(offered(width)))
    unknown = PathParts(windows, _undefined(_columns(parts.bounds), len(INDICATORS)))
    return [unknown if each else PathParts() for each in kept]


class _Kind(ABC):
    """Parts of one kind of the paths of H groups."""

    def __init__(self, names: Sequence[str], bounds: tuple[Indices, Indices]) -> None:
        """`names`: of the I indicators; `bounds`: first and last checkpoints of the F parts."""
        self._bounds = bounds
        self._squares = [number for number, name in enumerate(names) if name in SQUARES]

    @abstractmethod
    def figures(
        self, trajectory: Trajectory, groups: Indices, known: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Return values and null values, (H, F, I) each; `known` are those of the whole paths, (G, I)."""

    @abstractmethod
    def squares(self, trajectory: Trajectory, groups: Indices, known: Array) -> Array:
        """Return the values of `SQUARES` alone, (H, F, …); `known` are all of the whole paths, (G, I)."""

    def begin(
        self, trajectory: Trajectory, groups: Indices, folds: Indices, known: tuple[Array, Array]
    ) -> None:
        self._values, self._nulls = self.figures(trajectory, groups, known)
        self._spread = Jackknife(self._values[..., self._squares], folds)

    def add(self, replicates: Trajectory, groups: Indices, known: Array, count: int) -> None:
        squares = self.squares(replicates, groups, known)
        self._spread.add(squares.reshape(count, len(groups) // count, *squares.shape[1:]))

    def result(self, errors_known: NDArray[np.bool_]) -> list[SubPaths]:
        corrected = self._values.copy()
        corrected[..., self._squares] = self._spread.corrected()
        corrected[~errors_known] = self._values[~errors_known]
        return [
            SubPaths(*self._bounds, values, nulls)
            for values, nulls in zip(corrected, self._nulls, strict=True)
        ]


class _Windows(_Kind):
    """Windows of one width."""

    def __init__(self, when: When, width: int) -> None:
        numbers = when.numbers.astype(np.int64)
        super().__init__(offered(width), (numbers[: 1 - width], numbers[width - 1 :]))
        self._when, self._width = when, width

    def figures(
        self, trajectory: Trajectory, groups: Indices, known: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        del known
        return of_windows(trajectory, self._when, self._width, groups)

    def squares(self, trajectory: Trajectory, groups: Indices, known: Array) -> Array:
        del known
        return predictability_of_windows(trajectory, self._width, groups)


class _Sections(_Kind):
    """Stages or phases: of these all indicators are of interest."""

    def __init__(
        self, when: When, sections: Sequence[Indices], bounds: tuple[Indices, Indices]
    ) -> None:
        """`sections`: numbers among the present checkpoints of those that are in each."""
        super().__init__(INDICATORS, bounds)
        self._when, self._sections = when, sections

    def figures(
        self, trajectory: Trajectory, groups: Indices, known: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        shape = len(groups), len(self._sections), len(INDICATORS)
        values, nulls = np.full(shape, np.nan), np.full(shape, np.nan)
        for number, present in enumerate(self._sections):
            if present.size == len(self._when.numbers) >= LEAST_CHECKPOINTS:  # made already
                values[:, number], nulls[:, number] = known[0][groups], known[1][groups]
            elif present.size:
                first, last = int(present[0]), int(present[-1])
                values[:, number], nulls[:, number] = of_sub_path(
                    trajectory, self._when, first, last, groups
                )
        return values, nulls

    def squares(self, trajectory: Trajectory, groups: Indices, known: Array) -> Array:
        values, _ = self.figures(trajectory, groups, (known, known))
        return values[..., self._squares]


def _with_the_same_phases(
    changes: Array, groups: Indices
) -> Iterator[tuple[list[tuple[int, int]], Indices]]:
    """Yield the first and last checkpoints of phases, and the groups that have these."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for group in groups.tolist():
        alike[tuple(phases(changes[group]))].append(group)
    for bounds, members in alike.items():
        if bounds:
            yield list(bounds), np.array(members)


def _columns(bounds: Sequence[tuple[int, int]]) -> tuple[Indices, Indices]:
    first, last = np.array(bounds, np.int64).reshape(-1, 2).T
    return first, last


def _undefined(bounds: tuple[Indices, Indices], indicators: int) -> SubPaths:
    nothing = np.full((len(bounds[0]), indicators), np.nan)
    return SubPaths(*bounds, nothing, nothing)
