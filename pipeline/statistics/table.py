"""All statistics, in the order in which pieces are given to them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.statistics.digest import Digest
from pipeline.statistics.gram import Gram
from pipeline.statistics.non_finite import NonFinite
from pipeline.statistics.rounding import Rounding
from pipeline.statistics.statistic import Statistic

ALWAYS: tuple[Statistic, ...] = (Gram(), NonFinite(), Digest(), Rounding())
"""What the figures are made of. The Gram matrix comes first: it shows which values are finite."""

ON_REQUEST: tuple[Statistic, ...] = ()
"""By `--statistics`."""

NAMES = tuple(statistic.name for statistic in ON_REQUEST)


def chosen(names: Iterable[str]) -> tuple[Statistic, ...]:
    """Return the statistics of a run that asks for these besides."""
    wanted = set(names)
    return (*ALWAYS, *(each for each in ON_REQUEST if each.name in wanted))
