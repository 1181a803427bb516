"""The paths of groups of weights, as Gram matrices over their checkpoints.

Everything is made from S, the Gram matrix of the rows theta_0, Delta_1, ..., Delta_T ("increment
basis"), where theta_k are the weights at checkpoint k and Delta_k = theta_k - theta_{k-1} is the
increment into it; theta_k - theta_0 is a displacement. All matrices are float64 and symmetric
unless said otherwise.

Shapes: G = groups in the stack (stack.py); K = checkpoints that are present, in order; N = all
checkpoints of the run.

Source: docs/method.md, section "One sufficient statistic".
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.numerics.stack import BoolArray, FloatArray, IntArray, diagonal, first_equal


def present_increments(increments: FloatArray, absent: BoolArray) -> FloatArray:
    """S of the present checkpoints alone, (G, K, K).

    Every absent checkpoint's row and column are added to the next present one's. The next increment
    is then the one from the last present checkpoint; after leading absences the first present
    checkpoint carries its whole theta; what follows the last present checkpoint is dropped. Linear
    in `increments`, so replicates and sums of groups commute with it.

    Args:
        increments: (G, N, N), S.
        absent: (N,), true where the checkpoint counts as absent.
    """
    if not absent.any():
        return increments
    present = np.flatnonzero(~absent)
    if present.size == 0:
        return np.zeros((len(increments), 0, 0))
    end = present[-1] + 1
    starts = np.concatenate(([0], present[:-1] + 1))
    rows = np.add.reduceat(increments[:, :end, :end], starts, axis=1)
    return np.add.reduceat(rows, starts, axis=2)


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """What is known of each group's path; equal checkpoints have exactly equal rows.

    Equality is given from outside, decided on stored values: from S alone a copy that is not a
    neighbour would lie a rounding error away (docs/method.md, "One sufficient statistic").
    """

    increments: FloatArray
    """(G, K, K) S: row 0 is theta_0, row k the increment into k; zero between equal neighbours."""
    dots: FloatArray
    """(G, K, K) <theta_i, theta_j>."""
    relative_dots: FloatArray
    """(G, K, K) <theta_i - theta_0, theta_j - theta_0>: dot products of displacements."""
    squared_distances: FloatArray
    """(G, K, K) ||theta_i - theta_j||^2, never negative."""
    onward_dots: FloatArray
    """(G, K, K) <theta_i, theta_j - theta_i> for i < j, else 0; not snapped, read it through `same`."""
    relative_onward_dots: FloatArray
    """(G, K, K) <theta_i - theta_0, theta_j - theta_i> for i < j, else 0; like `onward_dots`."""
    same: IntArray
    """(G, K) the first checkpoint whose stored values equal those of k (k itself if none)."""

    @classmethod
    def from_increments(cls, increments: FloatArray, labels: IntArray) -> Self:
        """The trajectories of the present checkpoints.

        Args:
            increments: (G, K, K), S of the present checkpoints.
            labels: (G, K), integers that are equal exactly where the stored values are, in any
                numbering.
        """
        same = first_equal(labels)
        increments = _symmetric(increments)
        _erase(increments, np.diff(same, axis=1, prepend=-1) == 0)
        dots, onward_dots = _accumulated(increments)
        squared_distances = _squared_distances(increments)
        _erase(dots, _is_residue(dots, increments))
        relative_dots, relative_onward_dots = _of_displacements(increments, squared_distances)
        return cls(
            increments,
            _snapped(dots, same),
            _snapped(relative_dots, same),
            _snapped(squared_distances, same),
            onward_dots,
            relative_onward_dots,
            same,
        )

    def sub_paths(self, groups: IntArray, firsts: IntArray, count: int) -> Self:
        """The trajectories, P of them, of some of the checkpoints, each as a path of its own.

        S of the checkpoints a ... b is R S R', where theta_a takes the place of theta_0: the first
        row of R is ones up to a. What does not speak of the first checkpoint is taken over as it is,
        so that a norm or a distance is the same, to the bit, in every sub-path.

        Args:
            groups: (P,), the group that each is of.
            firsts: (P,), the checkpoint a at which each begins.
            count: how many checkpoints each has, one at least.

        Source: docs/method-2.md, section 5.4.
        """
        k = firsts[:, np.newaxis] + np.arange(count)
        of_group = groups[:, np.newaxis]
        pairs = groups[:, np.newaxis, np.newaxis], k[:, :, np.newaxis], k[:, np.newaxis]
        same = first_equal(self.same[of_group, k])
        dots, squared_distances = self.dots[pairs], self.squared_distances[pairs]
        increments = self.increments[pairs]
        along = np.cumsum(self.increments, axis=1)[of_group, firsts[:, np.newaxis], k]
        along[:, 0] = dots[:, 0, 0]
        increments[:, 0] = increments[:, :, 0] = along
        relative_dots, relative_onward_dots = _of_displacements(increments, squared_distances)
        return type(self)(
            increments,
            dots,
            _snapped(relative_dots, same),
            squared_distances,
            self.onward_dots[pairs],
            relative_onward_dots,
            same,
        )


def cosines(dots: FloatArray) -> FloatArray:
    """(G, K, K) cosines of vectors with the dot products `dots`; NaN where a norm is 0.

    Exactly 1 on the diagonal and between vectors whose three dot products are bitwise equal:
    sqrt(x * x) is x in IEEE arithmetic.
    """
    squared_norms = diagonal(dots)
    ratio = squared_norms[:, :, np.newaxis] * squared_norms[:, np.newaxis]
    undefined = ~(ratio > 0)
    np.sqrt(ratio, out=ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(dots, ratio, out=ratio)
    np.clip(ratio, -1.0, 1.0, out=ratio)
    np.copyto(ratio, np.nan, where=undefined)
    return ratio


def angles_between(trajectory: Trajectory, i: IntArray, j: IntArray) -> FloatArray:
    """Angles of theta_i and theta_j seen from the origin, degrees, (G, P); NaN where one is zero.

    Args:
        i, j: (P,), checkpoints.

    Source: docs/method.md, "What is taken from S, and how" (the atan2 formula).
    """
    group = np.arange(len(trajectory.same))[:, np.newaxis]
    return _angles(trajectory, trajectory.dots, trajectory.onward_dots, group, i, j)


def apex_angles(
    trajectory: Trajectory, i: IntArray, j: IntArray, group: IntArray | None = None
) -> FloatArray:
    """Angles of theta_i and theta_j seen from theta_0, degrees; NaN where one equals theta_0.

    The same formula as `angles_between`, with the apex moved: late in a run neighbouring
    displacements are nearly parallel, where an arccos would lose the angle.

    Args:
        i, j: (P,), checkpoints.
        group: (P,), the group of each pair; all pairs of every group, (G, P), if not given.
    """
    if group is None:
        group = np.arange(len(trajectory.same))[:, np.newaxis]
    gram, onward = trajectory.relative_dots, trajectory.relative_onward_dots
    return _angles(trajectory, gram, onward, group, i, j)


def _symmetric(matrices: FloatArray) -> FloatArray:
    """New matrices, symmetric to the last bit."""
    total = matrices + matrices.swapaxes(1, 2)
    total /= 2
    return total


def _erase(matrices: FloatArray, rows: BoolArray) -> None:
    """Zeroes rows and columns, (G, K), in place."""
    if rows.any():
        matrices[rows] = 0.0
        matrices.swapaxes(1, 2)[rows] = 0.0


def _snapped(matrices: FloatArray, same: IntArray) -> FloatArray:
    """The matrices with the rows and columns of equal checkpoints made those of the first of them."""
    for group in np.flatnonzero((same != np.arange(same.shape[1])).any(axis=1)):
        matrices[group] = matrices[group][np.ix_(same[group], same[group])]
    return matrices


def _accumulated(increments: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Dot products of the partial sums of the basis, and `onward_dots`; both (G, K, K).

    The latter are summed outward from i, not as differences of the former, which would cancel. Both
    grow row by row of their transposes: whole rows are added at a time, and S is symmetric.
    """
    sums = np.cumsum(increments, axis=2)
    onward = np.zeros_like(sums)
    for j in range(1, sums.shape[1]):
        np.add(onward[:, j - 1, :j], sums[:, j, :j], out=onward[:, j, :j])
    for j in range(1, sums.shape[1]):
        sums[:, j] += sums[:, j - 1]
    return _symmetric(sums), onward.swapaxes(1, 2)


def _of_displacements(
    increments: FloatArray, squared_distances: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Dot products of displacements, and `relative_onward_dots`; both (G, K, K)."""
    displacing = increments.copy()
    displacing[:, :1] = 0.0
    displacing[:, :, :1] = 0.0
    relative_dots, relative_onward_dots = _accumulated(displacing)
    diagonal(relative_dots)[:] = squared_distances[:, 0]
    return relative_dots, relative_onward_dots


def _squared_distances(increments: FloatArray) -> FloatArray:
    """(G, K, K) sums of the blocks S[i+1..j, i+1..j], accumulated outward from i.

    Going from j-1 to j adds S_jj and twice the column S[i+1..j-1, j]; those column sums run
    upwards from the diagonal, so that nothing is formed as a difference. In the arrays here that
    column is row j.
    """
    below = np.tril(increments, -1)
    growth = np.zeros_like(below)
    np.cumsum(below[:, :, :0:-1], axis=2, out=growth[:, :, -2::-1])
    growth *= 2.0
    growth += diagonal(increments)[:, :, np.newaxis]
    lower = below
    lower[:] = 0.0
    for j in range(1, lower.shape[1]):
        np.add(lower[:, j - 1, :j], growth[:, j, :j], out=lower[:, j, :j])
    np.maximum(lower, 0.0, out=lower)
    return np.add(lower, lower.swapaxes(1, 2), out=growth)


def _is_residue(dots: FloatArray, increments: FloatArray) -> BoolArray:
    """(G, K) true where ||theta_k||^2 is no more than rounding of the path that led there.

    A checkpoint of zeros after a non-zero one leaves such a residue, and its cosines would be
    noise. K eps (||theta_0|| + path length)^2 bounds the rounding of a double cumulative sum.
    """
    reach = np.cumsum(np.sqrt(diagonal(increments)), axis=1)
    return diagonal(dots) <= reach.shape[1] * np.finfo(np.float64).eps * reach**2


def triangles(
    trajectory: Trajectory,
    gram: FloatArray,
    onward: FloatArray,
    group: IntArray,
    i: IntArray,
    j: IntArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of the apex and checkpoints i and j: a = |u|², b = |v|² and c = <u, v>, u from the apex to the
    earlier of the two, v from there to the later one.

    Equal checkpoints are read as the first of them. `gram` and `onward` are of the vectors from the
    apex; `group`, `i` and `j` are broadcast.
    """
    i, j = trajectory.same[group, i], trajectory.same[group, j]
    first, last = np.minimum(i, j), np.maximum(i, j)
    a = diagonal(gram)[group, first]
    return a, trajectory.squared_distances[group, first, last], onward[group, first, last]


def _angles(
    trajectory: Trajectory,
    gram: FloatArray,
    onward: FloatArray,
    group: IntArray,
    i: IntArray,
    j: IntArray,
) -> FloatArray:
    """Degrees; arguments are as for `triangles`."""
    a, b, c = triangles(trajectory, gram, onward, group, i, j)
    squared_norms = diagonal(gram)
    defined = (squared_norms[group, i] > 0) & (squared_norms[group, j] > 0)
    angle = np.degrees(np.arctan2(np.sqrt(np.maximum(a * b - c * c, 0.0)), a + c))
    return np.where(defined, angle, np.nan)
