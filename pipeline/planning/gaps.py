"""Checkpoints that a series seems to lack, by the spacing of the others.

Definition: docs/method.md, §3, `missing_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """Two neighbouring checkpoints that others should lie between."""

    stage: int | None
    after: int
    before: int
    missing: int
    """How many checkpoints the spacing on both sides lets expect in between."""


def gaps(steps: Sequence[int], stage: int | None = None) -> list[Gap]:
    """Return the gaps in ascending steps of one stage.

    A gap is a multiple, twice or more, of the spacing that is the same on both its sides; or,
    where steps grow by a common ratio, a power of it. Never at the ends, and never where the
    spacing changes.
    """
    gaps_so_far = []
    for i in range(1, len(steps) - 2):
        before, start, stop, after = steps[i - 1 : i + 3]
        spacing = start - before
        if spacing == after - stop and spacing > 0 and (stop - start) % spacing == 0:
            missing = (stop - start) // spacing - 1
        elif before > 0 and start * stop == before * after and start % before == 0:
            ratio = start // before
            power = round(math.log(stop / start, ratio)) if ratio > 1 else 0
            missing = power - 1 if power > 0 and start * ratio**power == stop else 0
        else:
            missing = 0
        if missing > 0:
            gaps_so_far.append(Gap(stage, start, stop, missing))
    return gaps_so_far
