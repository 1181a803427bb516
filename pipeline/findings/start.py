"""The finding `starts_late`: where displacements begin, if that is no initialization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.finding import Finding
from pipeline.findings.naming import label, name
from pipeline.findings.observe import Observations, Seen
from pipeline.planning.plan import Plan, PlannedCheckpoint

_EXACT = 1e-12
"""Relative: a sum of ones has no rounding, what a sample scales up has a little."""


def starts_late(plan: Plan, seen: Observations) -> Iterator[Finding]:
    """Yield the finding if the first checkpoint has been trained already."""
    first = plan.checkpoints[0]
    if not _is_late(first) or _looks_initialized(seen.tensors):
        return
    where = f"step {first.step}" + (f" of stage {first.stage}" if first.stage else "")
    yield Finding(
        "info",
        "starts_late",
        f"{name(plan, 0)}: displacements are measured from {where}, not from initialization:"
        " relative figures are of another kind",
        0,
        evidence={"checkpoint": label(plan, 0), "stage": first.stage},
    )


def _is_late(first: PlannedCheckpoint) -> bool:
    """Return whether its name says so; a name without a step says nothing."""
    return first.step is not None and (first.step > 0 or (first.stage or 0) > 1)


def _looks_initialized(seen: Seen) -> bool:
    """Return whether what starts at one value still has it: norms' weights 1, biases 0.

    Some networks add 1 to the weights of their norms, which start at 0 then. Linear layers may draw
    their biases: those count only where there is no norm. What never moves says nothing, and a tensor
    of zeros has not been trained.
    """
    moving = seen.moving
    norms, biases = moving & seen.norms, moving & seen.biases
    zero, one = _are(seen, 0.0), _are(seen, 1.0)
    if norms.any():
        return bool((zero | (seen.weights & one))[norms].all())
    if biases.any():
        return bool(zero[biases].all())
    return bool(zero[moving].any())  # as one factor of an adapter


def _are(seen: Seen, value: float) -> NDArray[np.bool_]:
    """Return where all values of a tensor may be this at the first checkpoint, by their norm."""
    expected = value * seen.numels
    return np.abs(seen.first_squared_norms - expected) <= _EXACT * expected
