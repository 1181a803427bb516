"""The rows of statistics on request: one for each group and checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.reduce.figures import GroupSums
from pipeline.statistics.statistic import TabledStatistic


def rows(
    statistic: TabledStatistic, sums: GroupSums, firsts: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Return a statistic's columns, (K,) each, of a group; NaN where undefined.

    Args:
        firsts: where each path begins.
    """
    beside = sums.absent.copy()
    beside[1:] |= sums.absent[:-1]
    beside[list(firsts)] = True
    columns = {}
    for name, values in statistic.rows(sums.tables[statistic.name]).items():
        undefined = beside if name in statistic.of_increments else sums.absent
        columns[name] = np.where(undefined, np.nan, values)
    return columns
