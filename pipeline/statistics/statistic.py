"""The seam for whatever is computed of a part while its bytes are read.

A statistic names the arrays that it keeps of one part, gives what one piece adds to them, and says by
which rule arrays of two sets of elements become those of their union. From that alone follow the
accumulators of a tile, the bytes that they take, the result files, and the reduction: none of these
knows what it carries.

Declarations do without torch, so that planning does, too; `of_pieces` imports it where it needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.statistics.groups import PartStack
    from pipeline.statistics.piece import Pieces

Array = NDArray[Any]
Rule = Literal["add", "and", "max"]

MERGES: dict[str, np.ufunc] = {"add": np.add, "and": np.logical_and, "max": np.maximum}
_NEUTRAL = {"add": 0, "and": 1, "max": 0}


class ArraySpec(NamedTuple):
    """One array that a statistic keeps of each part."""

    name: str
    """`<statistic>.<array>`."""
    shape: tuple[int, ...]
    dtype: str
    rule: Rule = "add"
    """How the arrays of two sets of elements merge; `max` is of what is never negative."""
    symmetric: bool = False
    """A symmetric matrix: files and the reduction hold its upper triangle, row by row."""

    @property
    def nbytes(self) -> int:
        """Bytes in an accumulator, of one part."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """The shape in files and in the reduction."""
        if not self.symmetric:
            return self.shape
        return (self.shape[0] * (self.shape[0] + 1) // 2,)

    def empty(self, parts: int, packed: bool = False) -> Array:
        """Return the arrays of so many parts over no element, (parts, *shape)."""
        shape = self.packed_shape if packed else self.shape
        return np.full((parts, *shape), _NEUTRAL[self.rule], self.dtype)

    def merge(self, into: Array, other: Any) -> None:
        """Merge one array into another, in place."""
        MERGES[self.rule](into, other, out=into, casting="same_kind")


class Statistic(Protocol):
    """Something computed of every part, from values, stored bytes, or both."""

    name: str
    scratch: int
    """Bytes of working memory for each value of a piece, beside what pieces share."""

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        """Return what is kept of one part."""
        ...

    def of_pieces(self, pieces: Pieces) -> Mapping[str, Any]:
        """Return what each of B pieces adds to each array, by name: (B, …), in their order.

        Called once for a piece and its part, in ascending order of elements. What it returns may be
        scratch memory: it is merged before the statistic is asked again.
        """
        ...


class TabledStatistic(Statistic, Protocol):
    """A statistic with a table of its own: a row for each group and checkpoint."""

    columns: tuple[str, ...]
    """Of the table, beside the group and k; all are floating-point numbers."""
    of_increments: tuple[str, ...]
    """Those that compare with the checkpoint before: undefined at the first one of a path, and
    beside absent ones."""
    group_rules: Mapping[str, Rule]
    """How what is kept of parts merges into that of groups, where it does not add up."""

    def of_parts(self, stack: PartStack) -> Mapping[str, Array]:
        """Return what merges over the parts of a group, (Q, …) each, by name."""
        ...

    def rows(self, group: Mapping[str, Array]) -> Mapping[str, NDArray[np.float64]]:
        """Return the columns, (K,) each, of a group; NaN where undefined."""
        ...


def specs(statistics: Sequence[Statistic], num_checkpoints: int) -> tuple[ArraySpec, ...]:
    """Return all arrays that these statistics keep of one part."""
    return tuple(spec for each in statistics for spec in each.arrays(num_checkpoints))


def scratch_per_value(statistics: Sequence[Statistic]) -> int:
    """Return the bytes of working memory for each value of a piece: statistics are asked in turn."""
    return max(each.scratch for each in statistics)


def part_bytes(statistics: Sequence[Statistic], num_checkpoints: int) -> int:
    """Return the bytes that the accumulators of one part take."""
    return sum(spec.nbytes for spec in specs(statistics, num_checkpoints))


def packed(matrices: Array) -> Array:
    """Return the upper triangles, (…, n (n + 1) / 2), of symmetric matrices, (…, n, n)."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def beside_diagonal(triangles: Array, offset: int) -> Array:
    """Return the entries (i, i + offset), (…, n − offset), of upper triangles, (…, n (n + 1) / 2)."""
    n = _side(triangles)
    rows = np.arange(n - offset)
    return triangles[..., rows * n - rows * (rows - 1) // 2 + offset]


def unpacked(triangles: Array) -> Array:
    """Return the symmetric matrices, (…, n, n), of upper triangles, (…, n (n + 1) / 2)."""
    n = _side(triangles)
    rows, columns = np.triu_indices(n)
    matrices = np.empty((*triangles.shape[:-1], n, n), triangles.dtype)
    matrices[..., rows, columns] = triangles
    matrices[..., columns, rows] = triangles
    return matrices


def _side(triangles: Array) -> int:
    return int((np.sqrt(8 * triangles.shape[-1] + 1) - 1) / 2)


def one_by_one(pieces: Pieces, of_piece: Callable[[Pieces], Mapping[str, Any]]) -> dict[str, Array]:
    """Return the contributions of pieces, given what makes that of one alone."""
    each = [of_piece(pieces.one(number)) for number in range(len(pieces))]
    return {name: np.stack([contribution[name] for contribution in each]) for name in each[0]}
