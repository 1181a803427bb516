"""Which tensors that may be one under two names are not: by the digests of all their values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.plan import Plan
from pipeline.statistics.parts import Sums


def settled(
    plan: Plan,
    parts: Callable[[Sequence[tuple[int, int]]], Sums],
    lost: Collection[int] = (),
) -> Plan:
    """Return the plan with what its tensors' values say of ties.

    In a sample only the pairs that are drawn alike can be compared.

    Args:
        parts: gives the sums of some parts, in their order.
        lost: tensors of which some weights could not be read: nothing is said of them.
    """
    numbers = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
    apart: dict[int, int] = {}
    for number, tensor in enumerate(plan.tensors):
        if tensor.twin is None or {number, numbers[tensor.twin.name]} & {*lost}:
            continue
        if plan.sampled and not tensor.twin.is_drawn_alike:
            apart[number] = 0
            continue
        pair = (_digests(parts([(each, 0)])) for each in (numbers[tensor.twin.name], number))
        first, second = pair
        differ = np.flatnonzero((first != second).any(axis=1))
        if differ.size:
            apart[number] = int(differ[0])
    return plan.settled(apart)


def _digests(sums: Sums) -> NDArray[np.uint64]:
    """(K, 2) of a part, over its folds."""
    return np.add.reduce(sums.arrays["digest.words"], axis=0)
