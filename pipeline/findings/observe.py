"""What findings are judged by: a little of every tensor's figures, and the whole model's.

Letters: K checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.plan import Plan
from pipeline.reduce.figures import Figures
from pipeline.reduce.groups import Key

LAGS = 8
"""Cosines are kept between checkpoints up to so many apart: enough to judge neighbours when up to
seven between them have been left out as wrong."""


AROUND = 3
"""Checkpoints on each side that values are compared with: one or two of them may be wrong too."""


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """One tensor, or part of one, over all checkpoints."""

    name: str
    tensor: int
    numel: int
    component: str
    kind: str
    is_matrix: bool
    first_squared_norm: float
    """At checkpoint 0; NaN where it is not finite."""
    labels: NDArray[np.int64]
    """(K,) equal where the stored values are."""
    absent: NDArray[np.bool_]
    """(K,) where a value is not finite."""
    strain: NDArray[np.float64]
    """(K,) of `strain`, over all checkpoints."""
    cosines: NDArray[np.float64]
    """(LAGS + 1, K): cosine of checkpoint k and the one so many before it; NaN where unknown."""


class Observations:
    """All that is seen of one run, gathered group by group."""

    def __init__(self, plan: Plan) -> None:
        self._numels: dict[str, tuple[int, int]] = {}
        for index, tensor in enumerate(plan.tensors):
            for part in tensor.parts:
                name = f"{tensor.name}[{part.label}]" if part.label else tensor.name
                share = tensor.numel * (part.stop - part.start) // part.period
                before = self._numels.get(name, (index, 0))[1]
                self._numels[name] = index, before + share
        self._plan = plan
        self.tensors: list[Seen] = []
        self.model: Figures | None = None

    def add(self, key: Key, found: Figures) -> None:
        """Take note of a group's figures, if findings need them."""
        if not found.known:
            return
        if key.scope == "model":
            self.model = found
        if key.scope != "tensor" or key.tensor is None:
            return
        index, numel = self._numels[key.tensor]
        tensor = self._plan.tensors[index]
        seen = Seen(
            key.tensor,
            index,
            numel,
            tensor.role.component,
            tensor.role.kind,
            tensor.role.kind == "weight" and len([d for d in tensor.shape if d > 1]) >= 2,
            float(found.dots[0, 0]),
            found.labels,
            found.absent,
            strain(found.squared_distances, found.labels),
            _cosines(found.dots),
        )
        self.tensors.append(seen)


def strain(
    squared_distances: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(K,) how badly values fit where they are: of values held twice, the least is where they belong.

    The mean distance to the checkpoints around, over how many checkpoints apart they are. Those with
    the same values do not count; infinite where there is no other.
    """
    count = len(labels)
    found = np.full(count, np.inf)
    for k in range(count):
        others = np.flatnonzero((labels != labels[k]) & ~np.isnan(squared_distances[k]))
        near = np.append(others[others < k][-AROUND:], others[others > k][:AROUND])
        if near.size:
            found[k] = np.mean(np.sqrt(squared_distances[k, near]) / np.abs(near - k))
    return found


def _cosines(dots: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(dots)
    found = np.full((LAGS + 1, count), np.nan)
    norms = np.sqrt(np.diagonal(dots))
    with np.errstate(invalid="ignore", divide="ignore"):
        for lag in range(1, min(LAGS, count - 1) + 1):
            found[lag, lag:] = np.diagonal(dots, lag) / (norms[lag:] * norms[:-lag])
    return found
