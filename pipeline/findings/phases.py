"""The finding `phase_change`: where the model's increments become larger or smaller at once.

It says that and no more: a new rate, new data and a new optimizer look alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from pipeline.findings.finding import Finding
from pipeline.findings.naming import label
from pipeline.findings.observe import SeenModel
from pipeline.numerics.phases import LEAST_IN_PHASE, LEAST_WEIGHTS
from pipeline.planning.plan import Plan


def phase_changes(plan: Plan, model: SeenModel, explained: Collection[int]) -> Iterator[Finding]:
    """Yield a finding for each that no other test explains.

    Args:
        explained: checkpoints that others have: none of the increments that are compared begins or
            ends at one.
    """
    if plan.parameters < LEAST_WEIGHTS:
        return
    jumps = np.nan_to_num(model.jumps)
    for k in np.flatnonzero(jumps).tolist():
        if any(abs(k - other) <= LEAST_IN_PHASE for other in explained):
            continue
        jump = float(jumps[k])
        yield Finding(
            "info",
            "phase_change",
            f"increments become {math.exp(abs(jump)):.1f} × {'larger' if jump > 0 else 'smaller'}"
            f" from {_where(plan, k)}",
            k,
            evidence={"checkpoint": label(plan, k), "jump": jump},
        )


def _where(plan: Plan, k: int) -> str:
    checkpoint = plan.checkpoints[k]
    if checkpoint.step is None:
        return checkpoint.name
    stage = "" if checkpoint.stage is None else f" of stage {checkpoint.stage}"
    return f"step {checkpoint.step}{stage}"
