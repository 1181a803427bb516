"""What findings are judged by: a little of every tensor's figures, and the whole model's.

Letters: T tensors or parts of tensors, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics import straight_turns
from pipeline.numerics.indicators import INDICATORS
from pipeline.planning.plan import Plan
from pipeline.reduce.batches import FigureBatch
from pipeline.reduce.figures import Figures
from pipeline.reduce.rows import TableRows

LAGS = 8
"""Checkpoints are compared with those up to so many before: enough to judge neighbours when up to
seven between them have been left out as wrong."""
AROUND = 3
"""Checkpoints on each side that values are compared with: one or two of them may be wrong too."""
UNRELATED = 4.0
"""Standard deviations of the cosine of two random vectors, 1 / sqrt(numel): no more is unrelated."""
RELATED_COSINE = 0.5

Labels = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """Tensors, or parts of them, over all checkpoints, in the order in which they were seen."""

    names: list[str]
    """T, like all that follows."""
    tensors: NDArray[np.int64]
    """Their numbers in the plan."""
    numels: NDArray[np.int64]
    norms: Flags
    """Whether each is of a normalization."""
    biases: Flags
    weights: Flags
    """Whether each is neither a bias nor the like."""
    matrices: Flags
    first_squared_norms: Array
    """At checkpoint 0; NaN where it is not finite."""
    labels: Labels
    """(T, K) equal where the stored values are."""
    absent: Flags
    """(T, K) where a value is not finite."""
    misfits: Array
    """(T, K) of `misfit`, over all checkpoints; of tensors that hold some values twice."""
    unrelated: Flags
    """(T, LAGS + 1, K): whether checkpoint k has no more to do with the one so many before it than
    random vectors have."""
    related: Flags
    """(T, LAGS + 1, K): whether its cosine with that one is half or more."""

    def named(self, which: Flags | NDArray[np.int64]) -> list[str]:
        """Return the names of some: a flag for each, or indices."""
        indices = np.flatnonzero(which) if which.dtype == np.bool_ else which
        return [self.names[index] for index in indices]

    @property
    def moving(self) -> Flags:
        """(T,) whether two present checkpoints differ."""
        least, most = self._label_range
        return least < most

    @property
    def frozen(self) -> Flags:
        """(T,) whether several checkpoints are present, and all the same."""
        least, most = self._label_range
        return (least == most) & (np.count_nonzero(~self.absent, axis=1) > 1)

    @property
    def _label_range(self) -> tuple[Labels, Labels]:
        most = np.iinfo(self.labels.dtype).max
        return (
            np.where(self.absent, most, self.labels).min(axis=1, initial=most),
            np.where(self.absent, -1, self.labels).max(axis=1, initial=-1),
        )


@dataclass(frozen=True, eq=False, slots=True)
class SeenModel:
    """The whole model's figures, as far as findings and the summary need them."""

    labels: Labels
    """(K,) equal where the stored values are."""
    absent: Flags
    """(K,)"""
    squared_distances: Array
    """(K, K)"""
    noise_floors: Array
    """(K,) what rounding alone makes of a straight path's update angle, degrees."""
    jumps: Array
    """(K,) how much longer increments become there, in logarithms; 0 where nothing changes."""
    indicators: dict[str, float]
    indicator_errors: dict[str, float]

    @property
    def moves(self) -> bool:
        """Whether two present checkpoints differ."""
        return len(set(self.labels[~self.absent].tolist())) > 1


@dataclass(frozen=True, eq=False, slots=True)
class SeenTable:
    """The rows of an embedding or output head."""

    name: str
    rows: NDArray[np.int64]
    """Their numbers: those that were read whole."""
    turned: Array
    """1 − cos(w_0, w_T) of each; 0 of one that is zero throughout, NaN where it is not known."""


class Observations:
    """All that is seen of one run, gathered batch by batch."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts: dict[str, tuple[int, int]] = {}
        for index, tensor in enumerate(plan.tensors):
            for part in tensor.parts:
                name = f"{tensor.name}[{part.label}]" if part.label else tensor.name
                share = tensor.numel * (part.stop - part.start) // part.period
                before = self._parts.get(name, (index, 0))[1]
                self._parts[name] = index, before + share
        self._seen: list[Seen] = []
        self.model: SeenModel | None = None
        self.tables: list[SeenTable] = []

    def add_rows(self, table: TableRows) -> None:
        """Take note of the rows of a tensor, as far as findings need them."""
        self.tables.append(SeenTable(table.tensor, table.rows, _turned(table)))

    def add(self, batch: FigureBatch) -> None:
        """Take note of groups' figures, as far as findings need them."""
        known = batch.figures.known[batch.rows]
        chosen = [
            number
            for number, key in enumerate(batch.keys)
            if key.scope in ("model", "tensor") and known[number]
        ]
        names = []
        rows = []
        for number in chosen:
            key, row = batch.keys[number], batch.rows[number]
            if key.tensor is None:
                self.model = _model(batch.figures, row)
            else:
                names.append(key.tensor)
                rows.append(row)
        if names:
            self._seen.append(self._tensors(names, batch.figures, np.array(rows)))

    @cached_property
    def tensors(self) -> Seen:
        """All tensors; none may be added any more."""
        none = self._tensors([], None, np.zeros(0, int))
        seen, self._seen = self._seen or [none], []
        columns: dict[str, Any] = {
            field: np.concatenate([getattr(some, field) for some in seen])
            for field in Seen.__slots__
            if field != "names"
        }
        return Seen(names=[name for some in seen for name in some.names], **columns)

    def _tensors(
        self, names: Sequence[str], figures: Figures | None, rows: NDArray[np.int64]
    ) -> Seen:
        places = [self._parts[name] for name in names]
        roles = [self._plan.tensors[index].role for index, _ in places]
        wide = [
            len([d for d in self._plan.tensors[index].shape if d > 1]) >= 2 for index, _ in places
        ]
        numels = np.array([numel for _, numel in places], np.int64)
        weights = np.array([role.kind == "weight" for role in roles], bool)
        count = len(self._plan.checkpoints)
        if figures is None:
            dots, distances = np.zeros((2, 0, count, count))
            labels, absent = np.zeros((0, count), np.int32), np.zeros((0, count), bool)
        else:
            dots, distances = figures.dots[rows], figures.squared_distances
            labels, absent = figures.labels[rows].astype(np.int32), figures.absent[rows]
        misfits = np.full(labels.shape, np.inf)
        twice = np.flatnonzero((labels != np.arange(count)).any(axis=1))
        misfits[twice] = misfit(distances[rows[twice]], labels[twice])
        cosines = _cosines(dots)
        limit = UNRELATED / np.sqrt(numels)[:, np.newaxis, np.newaxis]
        return Seen(
            names=list(names),
            tensors=np.array([index for index, _ in places], np.int64),
            numels=numels,
            norms=np.array([role.component == "norm" for role in roles], bool),
            biases=np.array([role.kind == "bias" for role in roles], bool),
            weights=weights,
            matrices=weights & np.array(wide, bool),
            first_squared_norms=dots[:, 0, 0].copy(),  # a view would hold all of the matrices
            labels=labels,
            absent=absent,
            misfits=misfits,
            unrelated=np.abs(cosines) <= limit,
            related=cosines >= RELATED_COSINE,
        )


def _turned(table: TableRows) -> Array:
    zero = (table.norm_first == 0) & (table.norm_last == 0) & (table.last_moved_k == 0)
    return np.where(zero, 0.0, 1 - table.cosine_first_last)


def misfit(squared_distances: Array, labels: Labels) -> Array:
    """(T, K) how badly values fit where they are: of values held twice, the least is where they belong.

    The mean distance to the checkpoints around, over how many checkpoints apart they are. Those with
    the same values do not count; infinite where there is no other.

    Args:
        squared_distances: (T, K, K), NaN where one of the two is absent.
        labels: (T, K), equal where the values are.
    """
    k = np.arange(labels.shape[1])
    apart = np.abs(k[:, np.newaxis] - k)
    others = (labels[:, :, np.newaxis] != labels[:, np.newaxis]) & ~np.isnan(squared_distances)
    up_to = np.cumsum(others, axis=2)
    up_to_k = np.diagonal(up_to, axis1=1, axis2=2)[:, :, np.newaxis]
    # before k, as many lie between as are counted from there on; after k, up to there
    between = np.where(k < k[:, np.newaxis], up_to_k - up_to, up_to - up_to_k - 1)
    near = others & (between < AROUND)
    speeds = np.divide(np.sqrt(squared_distances), apart, out=np.zeros(near.shape), where=near)
    count = np.count_nonzero(near, axis=2)
    infinite = np.full(labels.shape, np.inf)
    return np.divide(speeds.sum(axis=2), count, out=infinite, where=count > 0)


def _cosines(dots: Array) -> Array:
    """(T, LAGS + 1, K): cosine of checkpoint k and the one so many before it; NaN where unknown."""
    count = dots.shape[1]
    cosines = np.full((len(dots), LAGS + 1, count), np.nan)
    norms = np.sqrt(np.diagonal(dots, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        for lag in range(1, min(LAGS, count - 1) + 1):
            scale = norms[:, lag:] * norms[:, :-lag]
            cosines[:, lag, lag:] = np.diagonal(dots, lag, 1, 2) / scale
    return cosines


def _model(figures: Figures, row: int) -> SeenModel:
    return SeenModel(
        labels=figures.labels[row].copy(),
        absent=figures.absent[row].copy(),
        squared_distances=figures.squared_distances[row].copy(),
        noise_floors=figures.path[straight_turns.COLUMNS[1]][row].copy(),
        jumps=figures.jumps[row].copy(),
        indicators=dict(zip(INDICATORS, figures.indicators[row].tolist(), strict=True)),
        indicator_errors=dict(zip(INDICATORS, figures.indicator_errors[row].tolist(), strict=True)),
    )
