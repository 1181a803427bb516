"""Gram matrices of a followed run, estimated from what was kept of each checkpoint.

Of a checkpoint, read once and alone, the sums of every part are kept (a plan of that checkpoint, `sketched`):
squared norms, digests, counts and whatever was asked for are exact; products between checkpoints are
estimated from sketches. Source: docs/method-2.md, §7; docs/decisions/following.md.

Letters: P parts, N checkpoints of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.planning.plan import Plan
from pipeline.reduce.batches import OfGroups
from pipeline.reduce.groups import Grouping
from pipeline.statistics.parts import Sums

Kept = Callable[[Sequence[tuple[int, int]]], Sequence[Sums]]
"""Gives the sums of some parts, (tensor, part) as the plan numbers them: of each checkpoint in order,
the parts in the order asked for (their keys need not be the plan's). All arrays are as a `sketched` plan of
that one checkpoint left them, (P, 1, …) where K is a dimension and (P,) where it is not."""


def followed_sums(
    plan: Plan, grouped: Grouping, kept: Kept, at_once: int
) -> Iterator[OfGroups]:
    """Yield the estimated sums of every group, in place of `reduce.group_sums`; `reduce.reduce` takes them.

    With changes for 32 jackknife folds, so that figures have standard errors; none for groups of small parts
    alone, which are exact.

    Args:
        plan: of all N checkpoints, with the `sketch` that each was read with. What is asked of it: tensors
            with their names, parts, numbers of elements and formats at each checkpoint, the checkpoints, and
            the names of the statistics. Not their files, nor tiles.
        grouped: the groups of the plan.
        at_once: bytes of kept sums that may be asked for at once; decides nothing about the sums.
    """
    raise NotImplementedError
