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


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """One tensor, or part of one, over all checkpoints."""

    name: str
    tensor: int
    numel: int
    is_matrix: bool
    labels: NDArray[np.int64]
    """(K,) equal where the stored values are."""
    absent: NDArray[np.bool_]
    """(K,) where a value is not finite."""
    nearest: NDArray[np.int64]
    """(K,) the nearest checkpoint with other values; -1 if there is none."""
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
        if key.scope == "model":
            self.model = found
        if (
            key.scope != "tensor"
            or key.tensor is None
            or np.isnan(found.dots).all() != found.absent.all()
        ):
            return
        index, numel = self._numels[key.tensor]
        tensor = self._plan.tensors[index]
        seen = Seen(
            key.tensor,
            index,
            numel,
            tensor.role.kind == "weight" and len([d for d in tensor.shape if d > 1]) >= 2,
            found.labels,
            found.absent,
            _nearest(found),
            _cosines(found.dots),
        )
        self.tensors.append(seen)


def _nearest(found: Figures) -> NDArray[np.int64]:
    distances = np.where(np.isnan(found.squared_distances), np.inf, found.squared_distances)
    distances[found.labels == found.labels[:, np.newaxis]] = np.inf
    nearest = distances.argmin(axis=1)
    return np.where(np.isfinite(distances.min(axis=1)), nearest, -1)


def _cosines(dots: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(dots)
    found = np.full((LAGS + 1, count), np.nan)
    norms = np.sqrt(np.diagonal(dots))
    with np.errstate(invalid="ignore", divide="ignore"):
        for lag in range(1, min(LAGS, count - 1) + 1):
            found[lag, lag:] = np.diagonal(dots, lag) / (norms[lag:] * norms[:-lag])
    return found
