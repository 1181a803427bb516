"""Several paths in one increment basis (basis.py): what is known between them.

Nothing is formed as a difference of large numbers. Within one path nothing changes: its own S is
that of `Basis.own`.

Shapes: G = groups in the stack; N = checkpoints of all paths.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.numerics.stack import BoolArray, FloatArray


def parents(firsts: Sequence[int], count: int) -> NDArray[np.int64]:
    """(N,) the checkpoint that each row of the increment basis starts from; -1: the origin."""
    return Basis(tuple(firsts), count).parents


def transformed(rows: FloatArray, increments: FloatArray) -> FloatArray:
    """The Gram matrices of `rows`, given those of the basis they are written in, (G, N, N)."""
    return rows @ increments @ rows.T


def increments_between(increments: FloatArray, basis: Basis, absent: BoolArray) -> FloatArray:
    """(G, N, N) the Gram matrices in the increment basis of the present checkpoints; NaN where absent.

    As in the joint basis, each path but the first begins with a row that leads to it from the first
    present checkpoint of all.

    Args:
        increments: (G, N, N), S in the joint basis.
        absent: (N,), true where a checkpoint counts as absent; not all.
    """
    chain = basis.chains()
    rows = chain.copy()
    first = np.flatnonzero(~absent)[0]
    for path in basis.paths:
        present = path.start + np.flatnonzero(~absent[path])
        rows[present[1:]] -= chain[present[:-1]]
        if present.size and present[0] != first:
            rows[present[0]] -= chain[first]
    gram = transformed(rows, increments)
    gram[:, absent] = np.nan
    gram[:, :, absent] = np.nan
    return gram


def between_paths(
    increments: FloatArray, basis: Basis, absent: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(G, N, N) dot products, dot products of displacements, squared distances; NaN where absent.

    A displacement is from the first present checkpoint of the path it belongs to. Distances are
    taken from the displacements from the first checkpoint of all.

    Args:
        increments: (G, N, N), S in the joint basis.
        absent: (N,), true where a checkpoint counts as absent.
    """
    chain = basis.chains()
    starts = np.zeros_like(chain)
    for path in basis.paths:
        present = np.flatnonzero(~absent[path])
        if present.size:
            starts[path] = chain[path.start + present[0]]
    common = np.zeros_like(chain)
    common[:, 0] = 1.0
    dots, relative_dots, aside = (
        transformed(chain - origin, increments) for origin in (0.0, starts, common)
    )
    lengths = np.diagonal(aside, axis1=1, axis2=2)
    sums = lengths[:, :, np.newaxis] + lengths[:, np.newaxis]
    squared = np.maximum(sums - 2.0 * aside, 0.0)
    for matrices in (dots, relative_dots, squared):
        matrices[:, absent] = np.nan
        matrices[:, :, absent] = np.nan
    return dots, relative_dots, squared
