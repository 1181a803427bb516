"""What the training logged, thinned for the page: losses and learning rates first.

Shapes: P = points of a curve in the page.
"""

from __future__ import annotations

from typing import Any

from pipeline.store.query import Store

POINTS = 800
"""Of all runs' curves of one metric and split; of more values, means of consecutive ones are shown."""
_LEAST_POINTS = 100
MOST_METRICS = 6
"""That have a row in the figure; the others are named."""

_NAMES = """SELECT metric, CASE
        WHEN metric ILIKE '%loss%' THEN 0
        WHEN regexp_matches(metric, '(?i)(^|[^a-z])lr([^a-z]|$)|learning.?rate') THEN 1
        WHEN regexp_matches(metric, '(?i)runtime|per_second|(^|_)epoch$|flos$') THEN NULL
        ELSE 2 END AS place
FROM training WHERE run = ?
GROUP BY metric
ORDER BY place NULLS LAST, count(*) DESC, metric"""
"""In the order in which they are shown; those without a place tell of clocks and machines, not of the
network, and are named only."""

_CURVES = """WITH numbered AS (
    SELECT t.metric, t.split, t.step, t.k, t.value,
        row_number() OVER each - 1 AS place, count(*) OVER (PARTITION BY t.metric, t.split) AS number
    FROM training t
    WHERE t.run = ? AND list_contains(?, t.metric)
    WINDOW each AS (PARTITION BY t.metric, t.split ORDER BY t.step NULLS FIRST, t.k)
), thinned AS (
    SELECT metric, split, max(step) AS step, CASE WHEN count(*) = 1 THEN max(k) END AS k,
        avg(value) AS value, any_value(number) AS number
    FROM numbered GROUP BY metric, split, place // ceil(number / ?)::BIGINT
)
SELECT metric, split, any_value(number) AS number, list(step ORDER BY step NULLS FIRST, k) AS step,
    list(k ORDER BY step NULLS FIRST, k) AS k, list(value ORDER BY step NULLS FIRST, k) AS value
FROM thinned GROUP BY metric, split
ORDER BY list_position(?, metric), number DESC, split"""


def training(store: Store, run: str, runs: int) -> dict[str, Any]:
    """Return the curves that a page about so many runs shows of one, and the names of other metrics.

    Of each curve: `metric`, `split`, `number` of values that were logged, and (P,) `step` (of means the
    last one), `k` (null between checkpoints, and of means) and `value`.
    """
    names = store.sql(_NAMES, [run]).fetchall()
    shown = [name for name, place in names if place is not None][:MOST_METRICS]
    points = max(_LEAST_POINTS, POINTS // runs)
    curves = store.table(_CURVES, [run, shown, points, shown]).to_pylist() if shown else []
    for curve in curves:
        curve["value"] = [None if v is None else float(f"{v:.6g}") for v in curve["value"]]
    return {
        "points": points,
        "curves": curves,
        "others": [name for name, _ in names if name not in shown],
    }
