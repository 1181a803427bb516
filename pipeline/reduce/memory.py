"""The memory of the reduction: how it is divided, and what it takes at most beyond an idle process.

Integer arithmetic only. The factors were fitted to the growth of RssAnon while stored sums became tables:
24 checkpoints of 12,000 tensors, 154 of 300 and 935 of 20, with one thread and two, buffers small and large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.numerics.indicators import INDICATORS
from pipeline.planning.memory import largest_result, plan_bytes
from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.figures import STACK_BYTES as MOST_BATCH
from pipeline.reduce.groups import INCREMENTS_KEPT, Grouping
from pipeline.statistics.statistic import part_bytes

MOST_STACK = 16 << 20
"""Of Gram matrices that are added up at once: enough that the calls cost little beside them."""
MOST_HELD = 128 << 20
"""Of sums that may be asked for again: neighbours in a layer lie in few files."""
MOST_FILE = 32 << 20
"""Of a table encoded before it is stored: two million rows of similarities."""
ROW_GROUP = 122_880
"""Rows of a table that wait to be encoded together: DuckDB's own number, with which point queries take 2.4 ms,
4.8 to 5.6 with others."""
MOST_AHEAD = 64 << 20
"""Of results of tiles that are read ahead."""
FILE_OF_SUMS = 4 << 20
"""Of one file of sums, unless one tile leaves more: few files, little held. With files of 16 MiB the
reduction of 154 checkpoints of 300 tensors took 205 MiB at least, with these 142."""

_HALVINGS = 5
"""Of all buffers, at most: then a batch has 64 KiB, and a file of a table 1 MiB."""
_FIXED = 48 << 20
"""What little takes, too: 87 groups of 43 checkpoints grew a process by 32 MiB, 135 of 154 by 132,
where 135 are projected."""
_FIGURES = 36  # times the sums of a batch: what a thread makes of them, and two results that wait
_CHANGES = 4  # times the changes of a group: of batches that wait and the one in work, for a path once more
_STACKS = 6  # packed, unpacked, added up; batches that wait keep two alive
_WAITING = 2  # times the rows of a row group: as they came, and in one piece
_ENCODED = 3, 2  # a file grows by doubling
_PAIR, _CHECKPOINT, _INDICATOR = (64, 18), (264, 140), (37, 11)
# bytes of a row of similarities, of all rows of a k and of a row of indicators: waiting, encoded (products of
# increments besides)


@dataclass(frozen=True, slots=True)
class Buffers:
    """How the memory of the reduction is divided. In bytes, but for the threads."""

    threads: int
    """Batches whose figures are made side by side."""
    batch: int
    """Of the sums of groups whose figures are made together."""
    stack: int
    """Of Gram matrices of parts that are added up at once."""
    held: int
    """Of sums that may be asked for again."""
    file: int
    """Of a table encoded before it is stored."""
    ahead: int
    """Of results of tiles that are read ahead."""


def buffers(plan: Plan, grouped: Grouping, budget: int, threads: int) -> Buffers:
    """Return how a budget is divided: what decides nothing about the figures is halved until all fits.

    Args:
        budget: `least` or more.
        threads: at most.
    """
    divisions = list(_divisions(threads))
    fitting = (each for each in divisions if projected(plan, grouped, each) <= budget)
    return next(fitting, divisions[-1])


def least(plan: Plan, grouped: Grouping) -> int:
    """Return the smallest budget in which figures and tables are made."""
    return min(projected(plan, grouped, divided) for divided in _divisions(1))


def _divisions(threads: int) -> Iterator[Buffers]:
    """Yield buffers, from the largest that gain something to the smallest."""
    for halved in range(_HALVINGS + 1):
        yield Buffers(
            threads=max(1, threads >> halved),
            batch=MOST_BATCH >> halved,
            stack=MOST_STACK >> halved,
            held=MOST_HELD >> halved,
            file=MOST_FILE >> halved,
            ahead=MOST_AHEAD >> halved,
        )


def projected(plan: Plan, grouped: Grouping, divided: Buffers) -> int:
    """Return the most that the reduction takes beyond an idle process: parts come first, then groups."""
    of_part = part_bytes(plan.statistics, len(plan.checkpoints))
    of_group = group_bytes(plan)
    result = largest_result(plan.tiles, plan.tensors, of_part) // 2  # no accumulators
    of_parts = max(divided.ahead, result) + result
    of_groups = (
        min(divided.held, len(grouped.members) * of_part)
        + _STACKS * max(divided.stack, of_group)
        + _of_tables(plan, grouped, divided)
        + _of_figures(divided, _matrix_bytes(plan), _folds(plan))
        + most_open(grouped) * of_group
    )
    of_files = 2 * max(FILE_OF_SUMS, result)  # one, as bytes and as arrays
    return _FIXED + plan_bytes(plan.tensors) + of_files + max(of_parts, of_groups)


def projected_estimate(
    plan: Plan, grouped: Grouping, divided: Buffers, matrices: int, folds: int
) -> int:
    """Return the most that an estimate of an unfinished run takes, beside tiles.

    Args:
        matrices: kept of all groups until their figures are made.
        folds: of one group at most, that change it.
    """
    of_part, of_matrix = part_bytes(plan.statistics, len(plan.checkpoints)), _matrix_bytes(plan)
    return (
        _FIXED
        + largest_result(plan.tiles, plan.tensors, of_part)
        + matrices * of_matrix
        + _of_tables(plan, grouped, divided)
        + _of_figures(divided, of_matrix, folds)
    )


def largest_estimate(plan: Plan, grouped: Grouping, divided: Buffers) -> int:
    """Return the most that any estimate of a run takes, whichever tiles were read."""
    tiles: dict[int, set[int]] = defaultdict(set)
    roles: dict[int, set[str]] = defaultdict(set)
    of_tensor: dict[int, set[int]] = defaultdict(set)
    for tile in plan.tiles:
        for range_ in tile.ranges:
            of_tensor[range_.tensor].add(tile.index)
    for member in grouped.members:
        for group in member.groups:
            tiles[group] |= of_tensor[member.tensor]
            roles[group].add(plan.tensors[member.tensor].parts[member.part].component)
    folds = {group: min(JACKKNIFE_FOLDS, len(read) - 1) for group, read in tiles.items()}
    matrices = sum(1 + len(roles[group]) + folds[group] for group in folds)
    return projected_estimate(plan, grouped, divided, matrices, max(folds.values()))


def encoded_tables(grouped: Grouping, count: int) -> tuple[int, int, int]:
    """Return the bytes of the tables of a run with this many checkpoints, at most.

    Of similarities, of all that there is of each checkpoint, of indicators. Statistics on request are
    not among them.
    """
    groups, pairs = len(grouped.keys), count * (count + 1) // 2
    return (
        groups * _PAIR[1] * pairs + kept_increments(grouped, count),
        groups * _CHECKPOINT[1] * count,
        groups * _INDICATOR[1] * len(INDICATORS),
    )


def kept_increments(grouped: Grouping, count: int) -> int:
    """Return how many bytes of the similarities are products of increments."""
    kept = sum(key.scope in INCREMENTS_KEPT for key in grouped.keys)
    return 8 * kept * count * (count + 1) // 2  # of which hardly a bit can be spared


def group_bytes(plan: Plan) -> int:
    """Return the bytes of the sums of one group: of a sample a change for each fold, too."""
    return _matrix_bytes(plan) * (1 + _folds(plan))


def _folds(plan: Plan) -> int:
    """Return how many changes a group has: where its sums are estimates, by sample or by sketch."""
    return JACKKNIFE_FOLDS if plan.sampled or plan.sketch is not None else 0


def _matrix_bytes(plan: Plan) -> int:
    return 8 * len(plan.checkpoints) ** 2


def _of_figures(divided: Buffers, of_matrix: int, folds: int) -> int:
    # replicates of a group are worked on together, whatever a batch may have
    at_once = max(divided.batch, of_matrix, min(MOST_BATCH, folds * of_matrix))
    return divided.threads * (_FIGURES * at_once + _CHANGES * folds * of_matrix)


def _of_tables(plan: Plan, grouped: Grouping, divided: Buffers) -> int:
    count, total = len(plan.checkpoints), 0
    rows_of_group = count * (count + 1) // 2, count, len(INDICATORS)
    tables = encoded_tables(grouped, count)
    waiting = _PAIR[0], _CHECKPOINT[0], _INDICATOR[0]
    for rows, of_row, encoded in zip(rows_of_group, waiting, tables, strict=True):
        total += _WAITING * of_row * min(rows * len(grouped.keys), ROW_GROUP)
        total += min(divided.file, encoded) * _ENCODED[0] // _ENCODED[1]
    return total * (1 + len(plan.paths))


def most_open(grouped: Grouping) -> int:
    """Return how many groups of several parts have some of their sums at one time, and not all."""
    left = list(grouped.sizes)
    now = most = 0
    for member in grouped.members:
        for group in member.groups:
            now += left[group] == grouped.sizes[group] > 1
            left[group] -= 1
        most = max(most, now)
        now -= sum(not left[group] and grouped.sizes[group] > 1 for group in member.groups)
    return most
