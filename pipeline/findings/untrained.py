"""The finding `untrained_rows`: rows of an embedding that never left their direction.

Values do not tell them, since weight decay scales what gets no gradient (norm ratio 0.70 in one run).
Source: docs/method-2.md, §6.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.findings.finding import Finding
from pipeline.findings.observe import Observations
from pipeline.planning.plan import Plan

NEVER_TURNED = 1e-4
"""1 − cos(w_0, w_T) at most: rows never seen had up to 5e-6, all others 3.1e-3 or more, in five runs."""
TURNED = 1e-2
"""What the median of a table exceeds where its rows were trained at all."""
_SHOWN = 100
"""Rows of a finding's evidence; the view `rows` has all."""


def untrained_rows(plan: Plan, seen: Observations) -> Iterator[Finding]:
    """Yield a finding for each table with such rows."""
    for table in seen.tables:
        known = table.turned[~np.isnan(table.turned)]
        if not known.size or np.median(known) <= TURNED:
            continue
        untrained = table.rows[table.turned <= NEVER_TURNED]
        if not untrained.size:
            continue
        of_all = f"{untrained.size:,} of {table.rows.size:,} rows"
        read = " that were read" if plan.sampled else ""
        yield Finding(
            "info",
            "untrained_rows",
            f"{table.name}: {of_all}{read} never left {'its' if untrained.size == 1 else 'their'}"
            " direction: they were never trained",
            tensor=table.name,
            evidence={
                "rows": int(table.rows.size),
                "untrained": int(untrained.size),
                "first": untrained[:_SHOWN].tolist(),
                "median": float(np.median(known)),
            },
        )
