"""All statistics, in the order in which pieces are given to them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.statistics.digest import Digest
from pipeline.statistics.exponents import Exponents
from pipeline.statistics.gram import Gram
from pipeline.statistics.non_finite import NonFinite
from pipeline.statistics.sparsity import Sparsity
from pipeline.statistics.statistic import Statistic, TabledStatistic
from pipeline.statistics.values import Values

ALWAYS: tuple[Statistic, ...] = (Gram(), NonFinite(), Digest(), Exponents())
"""What the figures are made of. The Gram matrix comes first: it shows which values are finite."""

ON_REQUEST: tuple[TabledStatistic, ...] = (Values(), Sparsity())
"""By `--statistics`: each costs more than a tenth of a run that reads from memory."""

NAMES = tuple(statistic.name for statistic in ON_REQUEST)


def on_request(names: Iterable[str]) -> tuple[TabledStatistic, ...]:
    """Return the statistics of these names, in the order of the table."""
    wanted = set(names)
    return tuple(each for each in ON_REQUEST if each.name in wanted)


def chosen(names: Iterable[str]) -> tuple[Statistic, ...]:
    """Return the statistics of a run that asks for these besides."""
    return (*ALWAYS, *on_request(names))
