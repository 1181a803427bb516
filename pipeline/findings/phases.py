"""The finding `phase_change`: where the model's increments become larger or smaller at once.

It says that and no more: a new rate, new data and a new optimizer look alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipeline.findings.finding import Finding
from pipeline.findings.naming import label
from pipeline.findings.observe import Observations
from pipeline.numerics.phases import LEAST_WEIGHTS
from pipeline.planning.plan import Plan


def phase_changes(plan: Plan, seen: Observations) -> Iterator[Finding]:
    """Yield a finding for each."""
    if seen.model is None or plan.parameters < LEAST_WEIGHTS:
        return
    jumps = np.nan_to_num(seen.model.jumps)
    for k in np.flatnonzero(jumps).tolist():
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
