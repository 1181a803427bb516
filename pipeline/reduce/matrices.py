"""The spectra of the matrices of a run, from the results of a second read.

Letters: K checkpoints of that read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.matrices import MatrixPlan
from pipeline.statistics.parts import Sums


@dataclass(frozen=True, eq=False, slots=True)
class MatrixFigures:
    """Of one matrix, at some checkpoints."""

    tensor: str
    expert: int | None
    checkpoints: NDArray[np.int32]
    """(K,) their numbers in the run."""
    sigma: NDArray[np.float64]
    """(K, 2, S) of the weights and of the displacement, as many as the matrix has and are kept; NaN where undefined."""
    ranks: NDArray[np.float64]
    """(K, 2, 3)"""


def matrix_figures(made: MatrixPlan, number: int, result: Sums) -> Iterator[MatrixFigures]:
    """Yield the figures of each part of a tensor, given the result of its tile."""
    tensor, shapes = made.plan.tensors[number], made.plan.matrices[number]
    sigma, ranks = result.arrays["matrices.sigma"], result.arrays["matrices.ranks"]
    for row, (part, shape) in enumerate(zip(tensor.parts, shapes, strict=True)):
        yield MatrixFigures(
            f"{tensor.name}[{part.label}]" if part.label else tensor.name,
            tensor.role.expert if part.expert is None else part.expert,
            np.array(made.checkpoints, np.int32),
            sigma[row, :, :, : min(shape)],
            ranks[row],
        )
