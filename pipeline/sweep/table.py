"""What a sweep shows: means over seeds of each combination of settings, with their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.store.query import Store
from pipeline.sweep.grid import Sweep

INDICATORS = ("mds", "relative_mds", "mean_update_angle_deg", "effective_rank")
"""That are shown, in this order, behind the accuracy."""
ACCURACY = "validation_accuracy"

_QUERY = """
WITH chosen AS (
    SELECT unnest(?) AS run, unnest(?) AS place
), figures AS (
    SELECT n.run, n.indicator AS figure, n.value, n.null_value
    FROM indicators n
    WHERE n.scope = 'model' AND n.indicator IN (SELECT unnest(?))
    UNION ALL
    SELECT t.run, ?, arg_max(t.value, t.step), NULL
    FROM training t
    WHERE t.split = 'validation' AND t.metric = 'accuracy'
    GROUP BY t.run
)
SELECT c.place, f.figure, count(f.value), avg(f.value ORDER BY f.run),
    stddev_samp(f.value ORDER BY f.run) / sqrt(count(f.value)), avg(f.null_value ORDER BY f.run)
FROM chosen c
JOIN runs r ON r.run = c.run AND r.complete
JOIN figures f ON f.run = c.run
GROUP BY c.place, f.figure
"""
"""`place`: number of the combination of settings. Sums are made in one order, for the same bits each time."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Of one figure, over seeds."""

    seeds: int
    mean: float | None
    stderr: float | None
    """Standard error of the mean; None of one seed."""
    null_value: float | None
    """Of a random walk with the same step lengths, the mean of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One combination of settings."""

    varied: Mapping[str, Any]
    figures: Mapping[str, Mean]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            **self.varied,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
        }


def table_of(sweep: Sweep, store: Store) -> list[Row]:
    """Return a row for each combination of settings, of the runs that the store has, in the sweep's order."""
    combinations = list({tuple(run.varied.items()): run.varied for run in sweep.runs}.values())
    places = [combinations.index(run.varied) for run in sweep.runs]
    names = [run.name for run in sweep.runs]
    rows: dict[int, dict[str, Mean]] = {}
    for place, figure, seeds, mean, stderr, null_value in store.sql(
        _QUERY, [names, places, list(INDICATORS), ACCURACY]
    ).fetchall():
        rows.setdefault(place, {})[figure] = Mean(seeds, mean, stderr, null_value)
    return [Row(combinations[place], rows[place]) for place in sorted(rows)]
