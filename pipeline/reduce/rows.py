"""From the sums of rows to the figures of each: in the order of the plan's tiles.

Letters: R rows of a table, P paths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.plan import Plan
from pipeline.statistics.rows import PRODUCTS, RowSums, RowTable

Column = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class TableRows:
    """The rows of one tensor, on one path."""

    tensor: str
    component: str
    rows: NDArray[np.int64]
    """Those of which every weight was read."""
    norm_first: Column
    norm_last: Column
    cosine_first_last: Column
    """NaN, like the norms, where undefined."""
    last_moved_k: NDArray[np.int32]
    """Counted from the path's first checkpoint; 0 where nothing moved."""


def table_rows(
    plan: Plan, sums: Iterable[RowSums], lost: Collection[int] = ()
) -> Iterator[list[TableRows]]:
    """Yield the rows of each table that counts, on each path.

    Args:
        sums: of all tiles, in order.
        lost: tensors of which some weights could not be read: they have no rows.
    """
    counted = {number for number, _ in plan.counted} - {*lost}
    tables = {number: table for number, table in plan.rows.tables.items() if number in counted}
    paths = len(plan.firsts)
    products = {n: np.zeros((table.rows, paths, PRODUCTS)) for n, table in tables.items()}
    moved = {n: np.zeros((table.rows, paths), np.int32) for n, table in tables.items()}
    for each in sums:
        for number in tables:
            of_table = each.keys[:, 0] == number
            rows = each.keys[of_table, 1]
            np.add.at(products[number], rows, each.products[of_table])
            np.maximum.at(moved[number], rows, each.last_moved[of_table])
    read = _read(plan, tables)
    for number in tables:
        tensor, rows = plan.tensors[number], read[number]
        yield [
            TableRows(
                tensor.name,
                tensor.role.component,
                rows,
                *_figures(products[number][rows, path]),
                moved[number][rows, path],
            )
            for path in range(paths)
        ]


def _figures(products: NDArray[np.float64]) -> tuple[Column, Column, Column]:
    """Return norms at the first and last checkpoint, and the cosine of the two, given (R, PRODUCTS)."""
    with np.errstate(all="ignore"):  # NaN where undefined
        norms = np.sqrt(np.where(np.isfinite(products[:, :2]), products[:, :2], np.nan))
        cosines = products[:, 2] / norms[:, 0] / norms[:, 1]
    cosines = np.where(np.isfinite(cosines), np.clip(cosines, -1, 1), np.nan)
    return norms[:, 0], norms[:, 1], cosines


def _read(plan: Plan, tables: Mapping[int, RowTable]) -> dict[int, NDArray[np.int64]]:
    """Return the rows of each table of which every weight is read: in a sample some."""
    if not plan.sampled:
        return {number: np.arange(table.rows) for number, table in tables.items()}
    numels = {n: np.zeros(table.rows, np.int64) for n, table in tables.items()}
    for tile in plan.tiles:
        for range_ in tile.ranges:
            if range_.tensor in tables:
                rows, begins = tables[range_.tensor].runs(range_.first, range_.stop)
                lengths = np.diff(begins, append=range_.stop - range_.first)
                np.add.at(numels[range_.tensor], rows, lengths)
    return {
        number: np.flatnonzero(numel == plan.tensors[number].numel // len(numel))
        for number, numel in numels.items()
    }
