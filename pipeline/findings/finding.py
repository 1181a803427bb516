"""A finding: one defect, or one thing worth knowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    """A row of the view `findings`."""

    severity: str
    kind: str
    message: str
    k: int | None = None
    """The checkpoint that is wrong; the first, where one defect is in several."""
    tensor: str | None = None
    """The tensor that is concerned; the first of several."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the judgement rests on; JSON in the view."""


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many findings there are of each severity."""
    tally = Counter(finding.severity for finding in findings)
    return {severity: tally[severity] for severity in SEVERITIES}
