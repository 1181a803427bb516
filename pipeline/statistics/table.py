"""All statistics, in the order in which pieces are given to them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.statistics.digest import Digest
from pipeline.statistics.exponents import Exponents
from pipeline.statistics.gram import Gram
from pipeline.statistics.non_finite import NonFinite
from pipeline.statistics.rows import NAME as ROWS
from pipeline.statistics.sparsity import Sparsity
from pipeline.statistics.statistic import Statistic, TabledStatistic
from pipeline.statistics.values import Values

ALWAYS: tuple[Statistic, ...] = (Gram(), NonFinite(), Digest(), Exponents())
"""What the figures are made of. The Gram matrix comes first: it shows which values are finite."""

ON_REQUEST: tuple[TabledStatistic, ...] = (Values(), Sparsity())
"""By `--statistics`: each costs more than a tenth of a run that reads from memory."""

SAID = {
    "values": "moments, quantiles, zeros and changes of sign of the weights (view values)",
    "sparsity": "how many stored weights change, beside what equal steps would change (view sparsity)",
    ROWS: "norms, cosine and last change of each row of embeddings and output heads (view rows; finding"
    " untrained_rows)",
}
"""What can be asked for, and what each of it is, for people."""

NAMES = tuple(SAID)


def on_request(names: Iterable[str]) -> tuple[TabledStatistic, ...]:
    """Return the statistics of these names, in the order of the table."""
    wanted = set(names)
    return tuple(each for each in ON_REQUEST if each.name in wanted)


def chosen(names: Iterable[str]) -> tuple[Statistic, ...]:
    """Return the statistics of a run that asks for these besides."""
    return (*ALWAYS, *on_request(names))
