"""How findings call checkpoints and many names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.planning.plan import Plan

NAMES_SHOWN = 3


def name(plan: Plan, k: int) -> str:
    """Return a checkpoint's name and step."""
    checkpoint = plan.checkpoints[k]
    return (
        checkpoint.name
        if checkpoint.step is None
        else f"{checkpoint.name} (step {checkpoint.step})"
    )


def label(plan: Plan, k: int) -> dict[str, Any]:
    """Return the same for evidence."""
    checkpoint = plan.checkpoints[k]
    return {"k": k, "name": checkpoint.name, "step": checkpoint.step}


def labels(plan: Plan, ks: Iterable[int]) -> list[dict[str, Any]]:
    """Return the same of several."""
    return [label(plan, k) for k in ks]


def some(names: Sequence[str]) -> str:
    """Return a few of many names."""
    more = len(names) - NAMES_SHOWN
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
