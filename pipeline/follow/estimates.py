"""Gram matrices of a followed run, estimated from what was kept of each checkpoint.

Of a checkpoint, read once and alone, the sums of every part are kept (a plan of that checkpoint, `sketched`):
squared norms, digests, counts and whatever was asked for are exact; products between checkpoints are
estimated from sketches. Source: docs/method-2.md, §7; docs/decisions/following.md.

Letters: P parts of a stack, N checkpoints of the run, m columns of sketches, F jackknife folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.batches import OfGroups
from pipeline.reduce.figures import GroupSums
from pipeline.reduce.groups import Grouping
from pipeline.reduce.memory import group_bytes
from pipeline.reduce.reduce import group_sums
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import packed, specs

Array = NDArray[np.float64]

Kept = Callable[[Sequence[tuple[int, int]]], Sequence[Sums]]
"""Gives the sums of some parts, (tensor, part) as the plan numbers them: of each checkpoint in order,
the parts in the order asked for (their keys need not be the plan's). All arrays are as a `sketched` plan of
that one checkpoint left them, (P, 1, …) where K is a dimension and (P,) where it is not."""


def followed_sums(plan: Plan, grouped: Grouping, kept: Kept, at_once: int) -> Iterator[OfGroups]:
    """Yield the estimated sums of every group, in place of `reduce.group_sums`; `reduce.reduce` takes them.

    With changes for 32 jackknife folds, so that figures have standard errors; none for groups of small parts
    alone, which are exact.

    Args:
        plan: of all N checkpoints, with the `sketch` that each was read with. What is asked of it: tensors
            with their names, parts, numbers of elements and formats at each checkpoint, the checkpoints, and
            the names of the statistics. Not their files, nor tiles.
        grouped: the groups of the plan.
        at_once: bytes that are made of parts at once; decides nothing about the sums.
    """
    estimates = _Estimates(plan, grouped, kept)
    stacked = max(1, at_once // estimates.part_bytes) * group_bytes(plan)
    for groups, sums in group_sums(plan, grouped, estimates.parts, stacked):
        assert sums is not None  # nothing is lost: what could not be read whole was not kept
        yield groups, estimates.of_group(groups[0], sums)


class _Estimates:
    """What is estimated of the parts that were asked for last, and of the groups that are not complete."""

    def __init__(self, plan: Plan, grouped: Grouping, kept: Kept) -> None:
        assert plan.sketch is not None
        self._plan, self._sketch, self._kept = plan, plan.sketch, kept
        self._groups = {(m.tensor, m.part): m.groups for m in grouped.members}
        self._folds: dict[int, Array] = {}
        """Group → (F, N, N), products over the buckets of each fold; of whole parts none."""
        self._squares: dict[int, Array] = defaultdict(lambda: np.zeros(len(plan.checkpoints)))
        """Group → (N,) ‖θ_k‖²."""

    @property
    def part_bytes(self) -> int:
        """Of what is kept of a part, what is made of it, and the products of its folds."""
        count = len(self._plan.checkpoints)
        return 8 * count * (3 * self._sketch.columns + (JACKKNIFE_FOLDS + 3) * count)

    def parts(self, parts: Sequence[tuple[int, int]]) -> Sums:
        """Return the sums of parts as one read of all checkpoints would have left them, as far as known."""
        arrays = _side_by_side(self._plan, self._kept(parts))
        grams = []
        for row, part in enumerate(parts):
            absent = arrays["non_finite.count"][row] > 0
            increments = _increments(arrays["sketch.buckets"][row], absent)
            part_of = self._plan.tensors[part[0]].parts[part[1]]
            folds = None
            if self._sketch.is_whole(part_of.below(self._plan.tensors[part[0]].numel)):
                grams.append(increments @ increments.T)
            else:
                folds = _of_folds(increments[:, : self._sketch.buckets])
                grams.append(np.add.reduce(folds))
            for group in self._groups[part]:
                self._squares[group] = self._squares[group] + arrays["sketch.squares"][row]
                if folds is not None:
                    before = self._folds.get(group)
                    self._folds[group] = folds if before is None else before + folds
        arrays["gram.increments"] = packed(np.stack(grams))
        return Sums(tuple(PartKey(*part) for part in parts), arrays, "")

    def of_group(self, group: int, sums: GroupSums) -> GroupSums:
        """Return the sums of a complete group with all that is known of it."""
        squares, folds = self._squares.pop(group), self._folds.pop(group, None)
        if folds is None:
            return sums
        increments = with_norms(sums.increments, squares, sums.absent)
        total = np.add.reduce(folds)
        changes = {}
        for fold, of_fold in enumerate(folds):
            without = sums.increments + (total - JACKKNIFE_FOLDS * of_fold) / (JACKKNIFE_FOLDS - 1)
            changes[fold] = with_norms(without, squares, sums.absent) - increments
        return replace(sums, increments=increments, changes=changes, folds=JACKKNIFE_FOLDS)


def with_norms(increments: Array, squares: Array, absent: NDArray[np.bool_]) -> Array:
    """Return an estimated S, (N, N), rescaled so that the norms of the checkpoints are what is known of them.

    θ_k becomes d_k θ_k, and Δ_k therefore d_k Δ_k + (d_k − d_{k−1}) θ_{k−1}: it stays positive semidefinite.
    Formed in these terms, since differences of products of the θ_k would cancel.

    Args:
        squares: (N,) ‖θ_k‖².
        absent: (N,) where that is not known; what is said of them is dropped (`present_increments`).
    """
    estimated = np.diagonal(np.cumsum(np.cumsum(increments, axis=0), axis=1))
    known = ~absent & (estimated > 0) & (squares > 0)
    scale = np.ones(len(squares))
    scale[known] = np.sqrt(squares[known] / estimated[known])
    rows = np.tril(np.repeat(np.diff(scale, prepend=scale[0])[:, None], len(scale), axis=1), -1)
    rows[np.diag_indices_from(rows)] = scale
    return rows @ increments @ rows.T


def _side_by_side(plan: Plan, kept: Sequence[Sums]) -> dict[str, NDArray[Any]]:
    """Return the arrays of parts over all checkpoints, (P, N, …), given those of each."""
    one, two = (specs(plan.statistics, count) for count in (1, 2))
    arrays = {}
    for of_one, of_two in zip(one, two, strict=True):
        if of_one.symmetric:
            continue  # products of one checkpoint with itself
        each = [sums.arrays[of_one.name] for sums in kept]
        arrays[of_one.name] = each[0] if of_one.shape == of_two.shape else np.concatenate(each, 1)
    return arrays


def _increments(sketches: Array, absent: NDArray[np.bool_]) -> Array:
    """Return what sketches of checkpoints, (N, m), make those of increments; zero where one is absent."""
    increments = np.zeros_like(sketches)
    present = np.flatnonzero(~absent)
    increments[present] = np.diff(sketches[present], axis=0, prepend=0.0)
    return increments


def _of_folds(increments: Array) -> Array:
    """Return the products of increments over the buckets j mod F = 0, 1, …: (F, N, N) of (N, m)."""
    count = len(increments)
    by_fold = increments.reshape(count, -1, JACKKNIFE_FOLDS).transpose(2, 0, 1).copy()
    return by_fold @ by_fold.transpose(0, 2, 1)
