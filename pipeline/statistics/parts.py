"""What tiles leave: the sums of every statistic over some elements of some parts, in stacked arrays.

Letters: P parts (a part in several folds counts several times), K checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.statistics.rows import RowSums
from pipeline.statistics.statistic import Array


class PartKey(NamedTuple):
    """What one row of sums is of."""

    tensor: int
    part: int
    fold: int = 0
    """Jackknife fold; folds differ only where weights are sampled."""


@dataclass(frozen=True, eq=False, slots=True)
class Sums:
    """Sums over some elements of some parts, for all checkpoints."""

    keys: tuple[PartKey, ...]
    arrays: Mapping[str, Array]
    """By name, (P, …); of symmetric matrices the upper triangle."""
    device: str
    """What computed them: the name of the processor or GPU."""
    rows: RowSums | None = None
    """Of the rows of tables, if they were asked for."""
