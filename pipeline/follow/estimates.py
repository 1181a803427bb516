"""Gram matrices of a followed run, estimated from what was kept of each checkpoint.

Of a checkpoint, read once and alone, the sums of every part are kept (a plan of that checkpoint, `sketched`):
squared norms, digests, counts and whatever was asked for are exact; products between checkpoints are
estimated from sketches. Source: docs/method-2.md, §7; docs/decisions/following.md.

Letters: P parts of a stack, N checkpoints of the run, m columns of sketches, F jackknife folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.follow.norms import with_norms
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
        yield groups, estimates.with_changes(groups[0], sums)


class _Estimates:
    """What is estimated of the parts that were asked for last, and of groups that are not complete."""

    def __init__(self, plan: Plan, grouped: Grouping, kept: Kept) -> None:
        assert plan.sketch is not None
        self._plan, self._sketch, self._kept = plan, plan.sketch, kept
        self._groups = {(member.tensor, member.part): member.groups for member in grouped.members}
        self._changes: dict[int, Array] = {}
        """Group → (F, N, N) what leaving out a fold changes; nothing of groups of small parts."""

    @property
    def part_bytes(self) -> int:
        """What is kept of a part, and what is made of it."""
        count = len(self._plan.checkpoints)
        return 8 * count * (3 * self._sketch.columns + 3 * JACKKNIFE_FOLDS * count)

    def parts(self, parts: Sequence[tuple[int, int]]) -> Sums:
        """Return the sums of parts as one read of all checkpoints would have left them, as far as known."""
        arrays = _side_by_side(self._plan, self._kept(parts))
        absent = arrays["non_finite.count"] > 0
        sketches, squares = arrays.pop("sketch.buckets"), arrays.pop("sketch.squares")
        increments = []
        for row, part in enumerate(parts):
            whole, changes = self._of_part(part, sketches[row], squares[row], absent[row])
            increments.append(packed(whole))
            if changes is not None:
                for group in self._groups[part]:
                    before = self._changes.get(group)
                    self._changes[group] = changes if before is None else before + changes
        arrays["gram.increments"] = np.stack(increments)
        return Sums(tuple(PartKey(*part) for part in parts), arrays, "")

    def with_changes(self, group: int, sums: GroupSums) -> GroupSums:
        """Return the sums of a complete group with what leaving out a fold changes."""
        changes = self._changes.pop(group, None)
        if changes is None:
            return sums
        return replace(sums, changes=dict(enumerate(changes)), folds=JACKKNIFE_FOLDS)

    def _of_part(
        self, part: tuple[int, int], sketches: Array, squares: Array, absent: NDArray[np.bool_]
    ) -> tuple[Array, Array | None]:
        """Return the estimated S of a part, and its changes, (F, N, N); None: it is exact."""
        tensor = self._plan.tensors[part[0]]
        increments = increments_of(sketches, absent)
        if self._sketch.is_whole(tensor.parts[part[1]].below(tensor.numel)):
            return increments @ increments.T, None
        estimated = products(increments[:, : self._sketch.buckets])
        whole, *replicates = with_norms(estimated, squares, absent)
        return whole, np.stack(replicates) - whole


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


def increments_of(sketches: Array, absent: NDArray[np.bool_]) -> Array:
    """Return what sketches of checkpoints, (N, m), make those of increments; zero where one is absent."""
    increments = np.zeros_like(sketches)
    present = np.flatnonzero(~absent)
    increments[present] = np.diff(sketches[present], axis=0, prepend=0.0)
    return increments


def products(increments: Array) -> Array:
    """Return S of the sketches of increments, (N, m), and of its replicates: (1 + F, N, N).

    Fold g has the buckets j mod F = g; the replicate without it is (S − S_g) F/(F − 1).
    """
    count = len(increments)
    by_fold = increments.reshape(count, -1, JACKKNIFE_FOLDS).transpose(2, 0, 1).copy()
    of_folds = by_fold @ by_fold.transpose(0, 2, 1)
    total = np.add.reduce(of_folds)
    without = (total - of_folds) * (JACKKNIFE_FOLDS / (JACKKNIFE_FOLDS - 1))
    return np.concatenate((total[None], without))
