"""What stacks of matrices and rows share: one leading axis for groups of weights.

Everything in this package takes many groups at once, since the cost of one call exceeds that of its
arithmetic for one group by far. A group's figures do not depend, to the bit, on the others in the
stack: sums run within each group, over the same elements in the same order.

Shapes: G = groups in a stack, K = entries of a group's row.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]

Selection = slice | IntArray


def patterns(mask: BoolArray) -> Iterator[tuple[Selection, Selection]]:
    """Divide a stack into groups whose rows have the same entries: (groups, entries) of each.

    What is summed over the defined entries of a row only is summed over a row without gaps, so that
    the order of the additions depends on nothing else. In most stacks all groups are alike.

    Args:
        mask: (G, K), true for the entries that count.
    """
    if not len(mask):
        return
    if (mask == mask[0]).all():
        yield slice(None), _selection(mask[0])
        return
    rows, kinds = np.unique(mask, axis=0, return_inverse=True)
    for kind, row in enumerate(rows):
        yield np.flatnonzero(kinds.reshape(-1) == kind), _selection(row)


def selected(matrices: FloatArray, groups: Selection, entries: Selection) -> FloatArray:
    """Return rows and columns `entries` of the matrices of `groups`; a view where that is possible."""
    return matrices[groups][:, entries][:, :, entries]


def diagonal(matrices: FloatArray) -> FloatArray:
    """Return the diagonals, (G, K), as a view that can be written to."""
    return np.einsum("gkk->gk", matrices)


def ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Return above / below, which may be broadcast to it; NaN where `below` is not positive."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def first_equal(labels: NDArray[Any]) -> IntArray:
    """Return the index of the first entry of the same row with the same label, (G, K).

    Args:
        labels: (G, K) or (G, K, words), integers; equal where all words are.
    """
    words = labels if labels.ndim > 2 else labels[..., np.newaxis]
    order = np.lexsort(np.moveaxis(words, -1, 0))  # stable: of equal ones the first comes first
    ordered = np.take_along_axis(words, order[..., np.newaxis], axis=1)
    begins = np.ones(order.shape, bool)
    begins[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=-1)
    places = np.where(begins, np.arange(order.shape[1]), 0)
    leaders = np.take_along_axis(order, np.maximum.accumulate(places, axis=1), axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, leaders, axis=1)
    return first


def _selection(row: BoolArray) -> Selection:
    """Return the indices of what is true, as a slice where they follow each other."""
    indices = np.flatnonzero(row)
    if not indices.size:
        return slice(0, 0)
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == indices.size else indices
