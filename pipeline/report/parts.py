"""Parts of the paths for the page: windows that slide along them, and where the training changed.

Shapes: K = checkpoints of the run, M = every so many of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.maps import KEYS
from pipeline.report.packing import pack
from pipeline.store.query import Store

WIDTH = 8
"""Checkpoints of the windows that are shown, where the store has them; else of its narrowest ones."""
SHOWN = ("straightness", "relative_mds", "mean_update_angle_deg", "predictability_1")
"""Those that a change moves most, over their scatter (docs/method-2.md, section 5.4)."""

_CHANGES = """SELECT DISTINCT k_first AS k, jump FROM phases
WHERE run = ? AND scope = 'model' AND jump IS NOT NULL
UNION ALL SELECT max(c.k), NULL FROM checkpoints c
JOIN indicators i ON i.run = c.run AND i.value = coalesce(c.step, c.k)
WHERE c.run = ? AND i.scope = 'model' AND i.indicator = 'decay_start_step'
HAVING count(*) > 0
ORDER BY k, jump"""


def changes(store: Store, run: str) -> list[dict[str, Any]]:
    """Return the checkpoints from which the model's increments are others.

    Of each: `k`, and `jump`, the logarithm of how much larger they are; null where a decay begins.
    """
    return store.table(_CHANGES, [run, run]).to_pylist()


def widths(store: Store, run: str) -> list[int]:
    """Return the widths of a run's windows, the one that is shown first."""
    known = store.sql(
        "SELECT DISTINCT w FROM windows WHERE run = ? AND scope = 'model' ORDER BY w <> ?, w",
        [run, WIDTH],
    ).fetchall()
    return [width for (width,) in known]


def windows(
    store: Store, run: str, scope: str, width: int, count: int, every: int
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return what is shown of windows, by the keys of each group of a scope.

    Of each indicator: `value` and `null_value`, (M,) packed, at the last checkpoint of each window.

    Args:
        count: K.
        every: only windows that end at the checkpoints 0, every, 2 every, … are taken.
    """
    answer = store.table(
        f"SELECT {', '.join(KEYS)}, indicator, list(k_last // ? ORDER BY k_last) AS places,"
        " list(value ORDER BY k_last) AS value, list(null_value ORDER BY k_last) AS null_value"
        " FROM windows WHERE run = ? AND scope = ? AND w = ? AND list_contains(?, indicator)"
        " AND k_last % ? = 0 GROUP BY ALL",
        [every, run, scope, width, list(SHOWN), every],
    ).to_pylist()
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(answer, key=lambda row: SHOWN.index(row["indicator"])):
        packed: dict[str, Any] = {}
        for name, bytes_a_value in (("value", 2), ("null_value", 1)):
            values = np.full(-(-count // every), np.nan)
            values[row["places"]] = row[name]
            packed[name] = pack(values, bytes_a_value)
        groups.setdefault(tuple(row[key] for key in KEYS), {})[row["indicator"]] = packed
    return groups
