"""Several paths in one increment basis: what is known between them.

Every path but the first begins with a row that leads to it from the first checkpoint of all, so
that two paths from one start lie close together in the basis too, and nothing is formed as a
difference of large numbers. Within one path nothing changes: its own S is `own_increments`.

Letters: N checkpoints of all paths; P of one path; K of them present.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.trajectory import BoolArray, FloatArray


def parents(firsts: Sequence[int], count: int) -> NDArray[np.int64]:
    """(N,) the checkpoint that each row of the increment basis starts from; -1: the origin.

    Args:
        firsts: where each path begins; the first of them is 0.
        count: N.
    """
    found = np.arange(-1, count - 1)
    found[list(firsts[1:])] = 0
    return found


def chains(parent: NDArray[np.int64]) -> FloatArray:
    """(N, N) ones where the row of the basis is a part of the checkpoint: theta = chains @ basis."""
    chain = np.eye(len(parent))
    for k, before in enumerate(parent):
        if before >= 0:
            chain[k] += chain[before]
    return chain


def own_basis(firsts: Sequence[int], count: int, path: int) -> FloatArray:
    """(P, N) the increment basis of one path alone, in terms of the joint one."""
    first = firsts[path]
    stop = firsts[path + 1] if path + 1 < len(firsts) else count
    rows = np.eye(count)[first:stop]
    if first:
        rows[0] += np.eye(count)[0]
    return rows


def transformed(rows: FloatArray, increments: FloatArray) -> FloatArray:
    """The Gram matrix of `rows`, given that of the basis they are written in."""
    return rows @ increments @ rows.T


def between_paths(
    increments: FloatArray, firsts: Sequence[int], absent: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(N, N) dot products, dot products of displacements, squared distances; NaN where absent.

    A displacement is from the first present checkpoint of the path it belongs to. Distances are
    taken from the displacements from the first checkpoint of all.

    Args:
        increments: (N, N), S in the joint basis.
        firsts: where each path begins.
        absent: (N,), true where a checkpoint counts as absent.
    """
    count = len(absent)
    chain = chains(parents(firsts, count))
    starts = np.zeros_like(chain)
    for first, stop in zip(firsts, [*firsts[1:], count], strict=True):
        present = np.flatnonzero(~absent[first:stop])
        if present.size:
            starts[first:stop] = chain[first + present[0]]
    common = np.zeros_like(chain)
    common[:, 0] = 1.0
    dots, relative_dots, aside = (
        transformed(chain - origin, increments) for origin in (0.0, starts, common)
    )
    lengths = np.diagonal(aside)
    squared = np.maximum(lengths[:, np.newaxis] + lengths - 2.0 * aside, 0.0)
    for matrix in (dots, relative_dots, squared):
        matrix[absent] = np.nan
        matrix[:, absent] = np.nan
    return dots, relative_dots, squared
