"""The path of one group of weights, as Gram matrices over its checkpoints.

Everything is made from S, the Gram matrix of the rows theta_0, Delta_1, ..., Delta_T ("increment
basis"), where theta_k are the weights at checkpoint k and Delta_k = theta_k - theta_{k-1} is the
increment into it; theta_k - theta_0 is a displacement. All matrices are float64 and symmetric
unless said otherwise.

Shapes: K = checkpoints that are present, in order; N = all checkpoints of the run.

Source: docs/method.md, section "One sufficient statistic".
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.integer[Any]]


def merge_absent(increments: FloatArray, absent: BoolArray) -> FloatArray:
    """S with every absent checkpoint's row and column added to the next present one's, and zeroed.

    The next increment is then the one from the last present checkpoint; after leading absences
    the first present checkpoint carries its whole theta; what follows the last present checkpoint
    is dropped. Linear in `increments` and idempotent, so replicates and sums of groups commute
    with it.

    Args:
        increments: (N, N), S.
        absent: (N,), true where the checkpoint counts as absent.
    """
    present = np.flatnonzero(~absent)
    merged = np.zeros_like(increments)
    merged[np.ix_(present, present)] = present_increments(increments, absent)
    return merged


def present_increments(increments: FloatArray, absent: BoolArray) -> FloatArray:
    """S of the present checkpoints alone: the non-zero rows and columns of `merge_absent`, (K, K)."""
    present = np.flatnonzero(~absent)
    if present.size == 0:
        return np.zeros((0, 0))
    end = present[-1] + 1
    starts = np.concatenate(([0], present[:-1] + 1))
    rows = np.add.reduceat(increments[:end, :end], starts, axis=0)
    return np.add.reduceat(rows, starts, axis=1)


def first_equal(labels: IntArray) -> IntArray:
    """(K,) index of the first entry with the same label, for any integer labels (K,)."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """What is known of one group's path; equal checkpoints have exactly equal rows.

    Equality is given from outside, decided on stored values: from S alone a copy that is not a
    neighbour would lie a rounding error away (docs/method.md, "One sufficient statistic").
    """

    increments: FloatArray
    """(K, K) S: row 0 is theta_0, row k the increment into k; zero between equal neighbours."""
    dots: FloatArray
    """(K, K) <theta_i, theta_j>."""
    relative_dots: FloatArray
    """(K, K) <theta_i - theta_0, theta_j - theta_0>: dot products of displacements."""
    squared_distances: FloatArray
    """(K, K) ||theta_i - theta_j||^2, never negative."""
    onward_dots: FloatArray
    """(K, K) <theta_i, theta_j - theta_i> for i < j, else 0; not snapped, read it through `same`."""
    relative_onward_dots: FloatArray
    """(K, K) <theta_i - theta_0, theta_j - theta_i> for i < j, else 0; like `onward_dots`."""
    same: IntArray
    """(K,) the first checkpoint whose stored values equal those of k (k itself if none)."""

    @classmethod
    def from_increments(cls, increments: FloatArray, same: IntArray) -> Self:
        """The trajectory of the present checkpoints.

        Args:
            increments: (K, K), S of the present checkpoints.
            same: (K,), integer labels that are equal exactly where the stored values are, such as
                the index of the first equal checkpoint, in any numbering.
        """
        same = first_equal(same)
        increments = _symmetric(increments)
        _erase(increments, np.flatnonzero(same[1:] == same[:-1]) + 1)
        displacing = increments.copy()
        _erase(displacing, np.arange(len(same))[:1])
        dots, onward_dots = _accumulated(increments)
        relative_dots, relative_onward_dots = _accumulated(displacing)
        squared_distances = _squared_distances(increments)
        _erase(dots, np.flatnonzero(_is_residue(dots, increments)))
        np.fill_diagonal(relative_dots, squared_distances[:1])
        snapped = np.ix_(same, same)
        return cls(
            increments,
            dots[snapped],
            relative_dots[snapped],
            squared_distances[snapped],
            onward_dots,
            relative_onward_dots,
            same,
        )


def cosines(dots: FloatArray) -> FloatArray:
    """(K, K) cosines of vectors with the dot products `dots`; NaN where a norm is 0.

    Exactly 1 on the diagonal and between vectors whose three dot products are bitwise equal:
    sqrt(x * x) is x in IEEE arithmetic.
    """
    squared_norms = np.diagonal(dots)
    scale = np.sqrt(np.outer(squared_norms, squared_norms))
    ratio = np.full_like(dots, np.nan)
    np.divide(dots, scale, out=ratio, where=scale > 0)
    return np.clip(ratio, -1.0, 1.0, out=ratio)


def angles_between(trajectory: Trajectory, i: IntArray, j: IntArray) -> FloatArray:
    """Angles of theta_i and theta_j seen from the origin, degrees; NaN where one is zero.

    Source: docs/method.md, "What is taken from S, and how" (the atan2 formula).
    """
    return _angles(trajectory, trajectory.dots, trajectory.onward_dots, i, j)


def apex_angles(trajectory: Trajectory, i: IntArray, j: IntArray) -> FloatArray:
    """Angles of theta_i and theta_j seen from theta_0, degrees; NaN where one equals theta_0.

    The same formula as `angles_between`, with the apex moved: late in a run neighbouring
    displacements are nearly parallel, where an arccos would lose the angle.
    """
    return _angles(trajectory, trajectory.relative_dots, trajectory.relative_onward_dots, i, j)


def random_walk(trajectory: Trajectory) -> Trajectory:
    """The null trajectory: the same step lengths, orthogonal to each other and to theta_0.

    Source: docs/method.md, "Null values" (S diagonal).
    """
    squared_lengths = np.diagonal(trajectory.increments)
    return _with_increments(np.diag(squared_lengths))


def straight_line(trajectory: Trajectory) -> Trajectory:
    """The same step lengths, parallel to each other and orthogonal to theta_0.

    Source: docs/method.md, "Null values".
    """
    squared_lengths = np.diagonal(trajectory.increments)
    lengths = np.sqrt(squared_lengths)
    increments = np.outer(lengths, lengths)
    _erase(increments, np.arange(len(lengths))[:1])
    np.fill_diagonal(increments, squared_lengths)
    return _with_increments(increments)


def _with_increments(increments: FloatArray) -> Trajectory:
    """A made-up trajectory, whose only equal checkpoints are those with no increment between."""
    return Trajectory.from_increments(
        increments, np.cumsum((np.diagonal(increments) > 0).astype(np.int64))
    )


def _symmetric(matrix: FloatArray) -> FloatArray:
    """A new matrix, symmetric to the last bit."""
    return (matrix + matrix.T) / 2


def _erase(matrix: FloatArray, indices: IntArray) -> None:
    """Zeroes rows and columns, in place."""
    matrix[indices] = 0.0
    matrix[:, indices] = 0.0


def _accumulated(increments: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Dot products of the partial sums of the basis, and `onward_dots`; both (K, K).

    The latter are summed outward from i, not as differences of the former, which would cancel.
    """
    with_increments = np.cumsum(increments, axis=0)
    onward = np.cumsum(np.triu(with_increments, 1), axis=1)
    return _symmetric(np.cumsum(with_increments, axis=1)), onward


def _squared_distances(increments: FloatArray) -> FloatArray:
    """(K, K) sums of the blocks S[i+1..j, i+1..j], accumulated outward from i.

    Going from j-1 to j adds S_jj and twice the column S[i+1..j-1, j]; those column sums run
    upwards from the diagonal, so that nothing is formed as a difference.
    """
    columns = np.cumsum(np.triu(increments, 1)[::-1], axis=0)[::-1]
    growth = np.empty_like(increments)
    growth[:] = np.diagonal(increments)
    growth[:-1] += 2.0 * columns[1:]
    upper = np.maximum(np.cumsum(np.triu(growth, 1), axis=1), 0.0)
    return upper + upper.T


def _is_residue(dots: FloatArray, increments: FloatArray) -> BoolArray:
    """(K,) true where ||theta_k||^2 is no more than rounding of the path that led there.

    A checkpoint of zeros after a non-zero one leaves such a residue, and its cosines would be
    noise. K eps (||theta_0|| + path length)^2 bounds the rounding of a double cumulative sum.
    """
    reach = np.cumsum(np.sqrt(np.diagonal(increments)))
    return np.diagonal(dots) <= len(reach) * np.finfo(np.float64).eps * reach**2


def _angles(
    trajectory: Trajectory, gram: FloatArray, onward: FloatArray, i: IntArray, j: IntArray
) -> FloatArray:
    """Degrees; `gram` and `onward` are of the vectors from the apex."""
    same = trajectory.same
    first, last = np.minimum(same[i], same[j]), np.maximum(same[i], same[j])
    squared_norms = np.diagonal(gram)
    a, b, c = squared_norms[first], trajectory.squared_distances[first, last], onward[first, last]
    angle = np.degrees(np.arctan2(np.sqrt(np.maximum(a * b - c * c, 0.0)), a + c))
    return np.where((a > 0) & (squared_norms[last] > 0), angle, np.nan)
