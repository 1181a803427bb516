"""Figures of parts of paths: of the windows that slide along them, and of the stages of the training.

Shapes: G = groups of a stack, H = those whose parts are looked at, K = checkpoints that are present,
F = parts of a path, I = indicators that are offered of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.indicators import INDICATORS, SQUARES
from pipeline.numerics.jackknife import Jackknife
from pipeline.numerics.trajectory import Trajectory
from pipeline.numerics.windows import When, of_sub_path, of_windows, offered
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
    """With every indicator."""

    @staticmethod
    def joined(several: Sequence[PathParts], firsts: Sequence[int]) -> PathParts:
        """Return what is said of several paths, which begin at `firsts`."""
        moved = [
            (
                {width: part.after(first) for width, part in each.windows.items()},
                each.stages and each.stages.after(first),
            )
            for each, first in zip(several, firsts, strict=True)
        ]
        widths = {width: None for windows, _ in moved for width in windows}
        stages = [stages for _, stages in moved if stages is not None]
        return PathParts(
            {
                width: SubPaths.joined([windows[width] for windows, _ in moved if width in windows])
                for width in widths
            },
            SubPaths.joined(stages) if stages else None,
        )


class PartFigures:
    """The figures of parts of the paths of some groups of a stack."""

    def __init__(
        self, parts: Parts, trajectory: Trajectory, when: When, groups: Indices, folds: Indices
    ) -> None:
        """Make them.

        Args:
            trajectory: of G groups.
            when: of its K checkpoints.
            groups: (H,), those whose parts are looked at.
            folds: (G,), jackknife folds of each.
        """
        self._groups, self._stack = groups, len(trajectory.same)
        count = len(when.numbers) if len(groups) else 0
        numbers = when.numbers.astype(np.int64)
        self._windows = {
            width: _Kind(
                partial(of_windows, when=when, width=width),
                offered(width),
                (numbers[: 1 - width], numbers[width - 1 :]),
            )
            for width in parts.widths
            if width <= count
        }
        bounds = parts.bounds if count else []
        within = [np.flatnonzero((numbers >= a) & (numbers <= b)) for a, b in bounds]
        self._stages = _Kind(
            partial(_of_stages, when=when, stages=within), INDICATORS, _columns(bounds)
        )
        for kind in self._kinds:
            kind.begin(trajectory, groups, folds[groups])

    @property
    def _kinds(self) -> list[_Kind]:
        return [*self._windows.values(), self._stages]

    def add(self, count: int, replicates: Trajectory) -> None:
        """Add those of `count` jackknife replicates, G groups of each."""
        offsets = self._stack * np.arange(count)
        for kind in self._kinds:
            kind.add(replicates, (offsets[:, np.newaxis] + self._groups).reshape(-1), count)

    def of_groups(self, errors_known: NDArray[np.bool_]) -> list[PathParts]:
        """Return them, less their bias where it is known, of each group of the stack."""
        made = [PathParts() for _ in range(self._stack)]
        known = errors_known[self._groups]
        windows = {width: kind.result(known) for width, kind in self._windows.items()}
        stages = self._stages.result(known)
        for row, group in enumerate(self._groups):
            of_group = {width: results[row] for width, results in windows.items()}
            made[group] = PathParts(of_group, stages[row])
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


class _Kind:
    """Parts of one kind of the paths of H groups."""

    def __init__(
        self,
        figures: Callable[..., tuple[Array, Array]],
        names: Sequence[str],
        bounds: tuple[Indices, Indices],
    ) -> None:
        """`figures`: trajectory and groups → values and null values, (H, F, I) each."""
        self._figures, self._bounds = figures, bounds
        self._squares = [number for number, name in enumerate(names) if name in SQUARES]

    def begin(self, trajectory: Trajectory, groups: Indices, folds: Indices) -> None:
        self._values, self._nulls = self._figures(trajectory, groups=groups)
        self._spread = Jackknife(self._values[..., self._squares], folds)

    def add(self, replicates: Trajectory, groups: Indices, count: int) -> None:
        values, _ = self._figures(replicates, groups=groups)
        squares = values[..., self._squares]
        self._spread.add(squares.reshape(count, len(groups) // count, *squares.shape[1:]))

    def result(self, errors_known: NDArray[np.bool_]) -> list[SubPaths]:
        corrected = self._values.copy()
        corrected[..., self._squares] = self._spread.corrected()
        corrected[~errors_known] = self._values[~errors_known]
        return [
            SubPaths(*self._bounds, values, nulls)
            for values, nulls in zip(corrected, self._nulls, strict=True)
        ]


def _of_stages(
    trajectory: Trajectory, when: When, stages: Sequence[Indices], groups: Indices
) -> tuple[Array, Array]:
    """Values and null values, (H, F, I) each, of stages by the checkpoints that are present in each."""
    made = np.full((2, len(groups), len(stages), len(INDICATORS)), np.nan)
    for number, present in enumerate(stages):
        if present.size:
            first, last = int(present[0]), int(present[-1])
            made[:, :, number] = of_sub_path(trajectory, when, first, last, groups)
    return made[0], made[1]


def _columns(bounds: Sequence[tuple[int, int]]) -> tuple[Indices, Indices]:
    first, last = np.array(bounds, np.int64).reshape(-1, 2).T
    return first, last


def _undefined(bounds: tuple[Indices, Indices], indicators: int) -> SubPaths:
    nothing = np.full((len(bounds[0]), indicators), np.nan)
    return SubPaths(*bounds, nothing, nothing)
