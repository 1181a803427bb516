"""The memory of the reduction: how it is divided, and what it takes at most beyond an idle process.

Integer arithmetic only. The factors were fitted to the growth of RssAnon while stored sums became tables:
24 checkpoints of 12,000 tensors, 154 of 300 and 935 of 20, with one thread and two, buffers small and large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.phases import LEAST_IN_PHASE
from pipeline.numerics.straight_turns import SCALES
from pipeline.planning.memory import largest_result, plan_bytes, rows_of_tile
from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.planning.tiles import results
from pipeline.reduce.figures import STACK_BYTES as MOST_BATCH
from pipeline.reduce.groups import Grouping
from pipeline.reduce.sub_paths import Parts
from pipeline.statistics.pieces import PIECE, batch_elements
from pipeline.statistics.rows import NAME as ROWS
from pipeline.statistics.rows import SCRATCH
from pipeline.statistics.statistic import part_bytes
from pipeline.statistics.table import on_request

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
_PAIR, _CHECKPOINT, _INDICATOR, _OF_PART = (64, 18), (368, 231), (37, 11), (40, 12)
# bytes of a row of similarities, of all rows of a k, of a row of indicators and of one of a part of a path:
# waiting, encoded (products of increments besides)
_PART = 64  # bytes of a figure of a part of a path, from when it is made until it is among the rows
_ROW = 96, 32  # of a row of a table of rows: as it waits, encoded


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
    divisions, result = list(_divisions(threads)), _result(plan)
    fitting = (each for each in divisions if projected(plan, grouped, each, result) <= budget)
    return next(fitting, divisions[-1])


def least(plan: Plan, grouped: Grouping) -> int:
    """Return the smallest budget in which figures and tables are made."""
    result = _result(plan)
    return min(projected(plan, grouped, divided, result) for divided in _divisions(1))


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


def projected(plan: Plan, grouped: Grouping, divided: Buffers, result: int | None = None) -> int:
    """Return the most that the reduction takes beyond an idle process: parts come first, then groups.

    Args:
        result: bytes of the largest result of a tile, where that is known.
    """
    of_part = part_bytes(plan.statistics, len(plan.checkpoints))
    of_group = group_bytes(plan)
    result = _result(plan) if result is None else result
    of_parts = max(divided.ahead, result) + result
    of_groups = (
        min(divided.held, len(grouped.members) * of_part)
        + _STACKS * max(divided.stack, of_group)
        + _of_tables(plan, grouped, divided)
        + _of_figures(plan, divided, _folds(plan))
        + grouped.most_open * of_group
        + _of_rows(plan, divided)
    )
    of_files = 2 * max(FILE_OF_SUMS, result)  # one, as bytes and as arrays
    return _FIXED + plan_bytes(plan.tensors) + of_files + max(of_parts, of_groups)


def _result(plan: Plan) -> int:
    """Return the bytes of the largest result of a tile; there are no accumulators besides."""
    of_part = part_bytes(plan.statistics, len(plan.checkpoints))
    return largest_result(plan.tiles, plan.tensors, of_part, plan.rows) // 2


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
        + largest_result(plan.tiles, plan.tensors, of_part, plan.rows)
        + matrices * of_matrix
        + _of_tables(plan, grouped, divided)
        + _of_figures(plan, divided, folds)
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


def encoded_tables(grouped: Grouping, plan: Plan) -> tuple[int, int, int, int, int, int]:
    """Return the bytes of the tables of a plan's run, at most.

    Of similarities, of all that there is of each checkpoint, of indicators, of windows, of stages, of
    phases. Statistics on request are not among them.
    """
    groups, count = len(grouped.keys), len(plan.checkpoints)
    windows, stages, phases = (_OF_PART[1] * rows for rows in _rows_of_parts(grouped, plan))
    return (
        groups * _PAIR[1] * _pairs(count) + kept_increments(grouped, count),
        groups * _CHECKPOINT[1] * count,
        groups * _INDICATOR[1] * len(INDICATORS),
        windows,
        stages,
        phases,
    )


def kept_increments(grouped: Grouping, count: int) -> int:
    """Return how many bytes of the similarities are products of increments."""
    return 8 * sum(grouped.increments_kept) * _pairs(count)  # of which hardly a bit can be spared


def _pairs(count: int) -> int:
    return count * (count + 1) // 2


def _rows_of_parts(grouped: Grouping, plan: Plan) -> tuple[int, int, int]:
    """Return how many rows the windows, the stages and at most the phases of all groups have."""
    windows, stages = Parts.asked(plan).rows
    phases = len(plan.checkpoints) // LEAST_IN_PHASE * len(INDICATORS)
    kept = sum(grouped.increments_kept)
    return kept * windows, kept * stages, kept * phases


def group_bytes(plan: Plan) -> int:
    """Return the bytes of the sums of one group: of a sample a change for each fold, too."""
    straight = 2 * 8 * len(SCALES) * len(plan.checkpoints)
    return straight + _matrix_bytes(plan) * (1 + _folds(plan))


def _folds(plan: Plan) -> int:
    """Return how many changes a group has: where its sums are estimates, by sample or by sketch."""
    return JACKKNIFE_FOLDS if plan.sampled or plan.sketch is not None else 0


def _matrix_bytes(plan: Plan) -> int:
    return 8 * len(plan.checkpoints) ** 2


def _of_figures(plan: Plan, divided: Buffers, folds: int) -> int:
    # replicates of a group are worked on together, whatever a batch may have
    of_matrix = _matrix_bytes(plan)
    at_once = max(divided.batch, of_matrix, min(MOST_BATCH, folds * of_matrix))
    of_parts = _PART * sum(Parts.asked(plan).rows) * max(1, divided.batch // of_matrix)
    return divided.threads * (_FIGURES * at_once + _CHANGES * folds * of_matrix + of_parts)


def _of_tables(plan: Plan, grouped: Grouping, divided: Buffers) -> int:
    count, groups, total = len(plan.checkpoints), len(grouped.keys), 0
    rows_of_tables = (
        *(groups * rows for rows in (_pairs(count), count, len(INDICATORS))),
        *_rows_of_parts(grouped, plan),
    )
    tables = encoded_tables(grouped, plan)
    waiting = _PAIR[0], _CHECKPOINT[0], _INDICATOR[0], *3 * _OF_PART[:1]
    for rows, of_row, encoded in zip(rows_of_tables, waiting, tables, strict=True):
        total += _WAITING * of_row * min(rows, ROW_GROUP)
        total += min(divided.file, encoded) * _ENCODED[0] // _ENCODED[1]
    return total * (1 + len(plan.paths))


def _of_rows(plan: Plan, divided: Buffers) -> int:
    """Return what rows of tables take: the sums of all, a file of them, and one table as it is written."""
    numbers = [table.rows for table in plan.rows.tables.values()]
    largest, total = max(numbers, default=0), sum(numbers)
    file = min(divided.file, _ROW[1] * total) * _ENCODED[0] // _ENCODED[1]
    of_one = _ROW[0] * largest + _WAITING * _ROW[0] * min(largest, ROW_GROUP) + file
    return 4 * plan.rows.each * total + of_one * len(plan.firsts)


class Requested(NamedTuple):
    """What a statistic on request costs. In bytes, at most."""

    memory: int
    """Of a worker, for each tile in hand."""
    stored: int
    """In the store, once the run is complete."""


def requested(plan: Plan, grouped: Grouping) -> dict[str, Requested]:
    """Return what each statistic costs that a plan asks for, by name."""
    count = len(plan.checkpoints)
    counts = [count, *(len(run.checkpoints) for run in plan.alone())]
    parts = sum(len({*results(r, plan.tensors)}) for tile in plan.tiles for r in tile.ranges)
    costs: dict[str, Requested] = {}
    for each in on_request(plan.statistics_asked):
        of_part = part_bytes([each], count)
        scratch = count * batch_elements(count) * each.scratch
        memory = scratch + largest_result(plan.tiles, plan.tensors, of_part)
        tables = 8 * (2 + len(each.columns)) * len(grouped.keys) * sum(counts)
        costs[each.name] = Requested(memory, of_part * parts + tables)
    if plan.rows.tables:
        total = sum(table.rows for table in plan.rows.tables.values())
        memory = SCRATCH * PIECE + 2 * max(rows_of_tile(tile, plan.rows) for tile in plan.tiles)
        sums = sum(rows_of_tile(tile, plan.rows) for tile in plan.tiles)
        costs[ROWS] = Requested(memory, sums + _ROW[1] * total * len(plan.firsts))
    return costs
