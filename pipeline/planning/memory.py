"""The memory that a worker will need, projected before anything is read.

Integer arithmetic only. The projection is checked against the measured peak by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import PlanDoesNotFit
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import ROW_ALIGNMENT, most_beside, piece_bytes, width
from pipeline.planning.tiles import Tile, results
from pipeline.statistics.pieces import PIECE, batch_elements, products_at_once
from pipeline.statistics.rows import NO_ROWS, SCRATCH, Rows
from pipeline.statistics.statistic import Statistic, part_bytes, scratch_per_value
from pipeline.statistics.table import ALWAYS

IDLE_BYTES = 300 << 20
"""What a process with torch, numpy and pyarrow takes before it has read anything (measured:
0.26 GiB with torch 2.13.0 for the CPU). Not part of the budget."""

RAY_BYTES = 450 << 20
"""What Ray's own processes take on a machine (measured: 420 to 460 MiB with Ray 2.60, head and all), beside
workers and the driver."""

DEFAULT_SHARE = 0.5
"""Of the memory of a machine or container, over all workers: the rest is for the page cache, for Ray
and for whatever else runs there."""

FIGURES = "their figures and tables"
"""What needs memory after the tiles, in an error."""

PREFERRED_ROW_BYTES = 1 << 20
"""Larger rows gain nothing here (4.3 GB from the page cache on 2 cores: 0.16 s with rows of 256 KiB
to 4 MiB, 0.27 s with 8 MiB); over a network 1 MiB is 20 round trips of 50 ms at 1 GB/s."""

PREFERRED_BLOCK_BYTES = 256 << 20
"""Bound on a block of very many checkpoints."""

PLAN_ENTRY = 300
"""Bytes that a plan keeps of a tensor at a checkpoint, with what is made of it: 207 of 12,000 tensors of 24
checkpoints by themselves, beside their groups and what findings are judged from."""

BLOCKS_UNDER_WAY = 8
"""Of the largest size that fits are pulled as smaller ones: fewer would be admitted one by one."""


@dataclass(frozen=True, slots=True)
class Memory:
    """How a worker's budget is spent. All in bytes, all per worker."""

    budget: int
    row_bytes: int
    """One checkpoint's share of a block."""
    projected: int
    """The most that the worker takes beyond an idle process."""
    least: int
    """The smallest budget that would do."""
    for_estimates: int = 0
    """What an estimate may take that the driver makes while tiles are worked through."""


def project(
    tensors: Sequence[AlignedTensor],
    tiles: Sequence[Tile],
    budget: int,
    calls: int,
    statistics: Sequence[Statistic] = ALWAYS,
    largest_block: int | None = None,
    afterwards: int = 0,
    rows: Rows = NO_ROWS,
) -> Memory:
    """Return how `calls` tiles side by side fit into a worker's budget, whatever computes them.

    With a GPU products and samples of a block come back in place of scratch (by arithmetic 25 of 23 MB with 154
    checkpoints; not measured).

    Args:
        largest_block: bytes of a block that an object store takes, if blocks travel through one:
            then many of them are to be on their way at once.
        afterwards: the least budget in which figures and tables are made, after the tiles.
        rows: what is kept of rows of tables.

    Raises:
        PlanDoesNotFit: they do not, or figures and tables do not; the error says the least that would do.
    """
    num_checkpoints = len(tensors[0].dtypes)
    of_part = part_bytes(statistics, num_checkpoints)
    fixed = plan_bytes(tensors) + calls * (
        scratch_bytes(tensors, statistics)
        + (SCRATCH * PIECE if rows.tables else 0)
        + largest_result(tiles, tensors, of_part, rows)
    )
    widest = max(width(tensor) for tensor in tensors)
    longest = max(
        sum(
            (range_.stop - range_.first) * width(tensors[range_.tensor])
            + widest
            + most_beside(tensors[range_.tensor], range_.stop - range_.first)
            for range_ in tile.ranges
        )
        for tile in tiles
    )
    least_row = _aligned(min(piece_bytes(tensors), longest))
    of_tiles = fixed + calls * num_checkpoints * least_row
    least = max(of_tiles, afterwards)
    if budget < least:
        what = f"{calls} tiles in flight" if least == of_tiles else FIGURES
        raise too_small(budget, num_checkpoints, what, least)
    preferred = min(PREFERRED_ROW_BYTES, PREFERRED_BLOCK_BYTES // num_checkpoints)
    if largest_block is not None:
        if num_checkpoints * least_row > largest_block:
            raise PlanDoesNotFit(
                f"--pull tasks: a block of {num_checkpoints} checkpoints takes at least"
                f" {show_size(num_checkpoints * least_row, up=True)}, the object stores of the"
                f" cluster {show_size(largest_block)}",
                "use --pull actor, or start Ray with a larger --object-store-memory",
            )
        preferred = min(preferred, largest_block // BLOCKS_UNDER_WAY // num_checkpoints)
    preferred = max(least_row, preferred // ROW_ALIGNMENT * ROW_ALIGNMENT)
    affordable = (budget - fixed) // (calls * num_checkpoints) // ROW_ALIGNMENT * ROW_ALIGNMENT
    row_bytes = min(preferred, affordable, _aligned(longest))
    return Memory(budget, row_bytes, fixed + calls * num_checkpoints * row_bytes, least)


def too_small(budget: int, num_checkpoints: int, what: str, least: int) -> PlanDoesNotFit:
    """Return the error that names the least budget that would do."""
    needed = show_size(least, up=True)
    return PlanDoesNotFit(
        f"--memory {show_size(budget)} is too small: {num_checkpoints} checkpoints with {what}"
        f" need at least {needed}",
        f"use --memory {needed}, or fewer checkpoints with --steps",
    )


def scratch_bytes(
    tensors: Sequence[AlignedTensor], statistics: Sequence[Statistic] = ALWAYS
) -> int:
    """Values, their gathered part, increments and samples of a batch, and the products of its pieces."""
    num_checkpoints = len(tensors[0].dtypes)
    value = max(4, max(width(tensor) for tensor in tensors))
    # values and gathered part as stored or in float32, increments in float32, a small
    # part rounded to other formats, the float64 route (two eighths of it)
    per_element = 2 * value + 4 + 2 * 4 + 2 + scratch_per_value(statistics)
    if any(tensor.scales for tensor in tensors):
        per_element += 3 * 4  # factors, what they make of codes, and how far apart these are
    # float32 products; in float64 those of pieces, that over present checkpoints, and one product
    products = products_at_once(num_checkpoints) * (4 + 8) + 2 * 8
    return num_checkpoints * (
        batch_elements(num_checkpoints) * per_element + products * num_checkpoints
    )


def plan_bytes(tensors: Sequence[AlignedTensor]) -> int:
    """Return what a process keeps of a plan."""
    return PLAN_ENTRY * sum(len(tensor.dtypes) for tensor in tensors)


def largest_result(
    tiles: Sequence[Tile], tensors: Sequence[AlignedTensor], each: int, rows: Rows = NO_ROWS
) -> int:
    """Return the bytes of the largest result of a tile: accumulators, or the file and what is in it.

    Args:
        each: bytes of the sums of one part. A file holds a triangle of a matrix, half of it.
        rows: what is kept of rows of tables besides.
    """
    return max(
        (
            2 * each * len({key for range_ in tile.ranges for key in results(range_, tensors)})
            + 2 * rows_of_tile(tile, rows)
            for tile in tiles
        ),
        default=0,  # of a run that is followed
    )


def rows_of_tile(tile: Tile, rows: Rows) -> int:
    """Return the bytes of the sums of rows that a tile keeps."""
    return rows.each * sum(
        rows.tables[range_.tensor].num_touched(range_.first, range_.stop)
        for range_ in tile.ranges
        if range_.tensor in rows.tables
    )


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT


def default_budget(total: int, workers: int, on_ray: bool) -> int:
    """Return a worker's budget where none is given, in bytes.

    Args:
        total: bytes that this machine or container has for all that runs in it.
        workers: how many work in it.

    Raises:
        PlanDoesNotFit: processes that have read nothing yet take all of it.
    """
    idle = idle_bytes(workers, on_ray)
    if total <= idle:
        without = "raise the limit"
        raise PlanDoesNotFit(
            f"this machine or container has {show_size(total)} of memory, and {show_size(idle)} goes"
            " to processes that have read nothing yet",
            f"use --executor local, or {without}" if on_ray else without,
        )
    return min(int(total * DEFAULT_SHARE), total - idle) // workers


def idle_bytes(workers: int, on_ray: bool) -> int:
    """Return what workers take on a machine before they read anything, with what they need beside."""
    return workers * IDLE_BYTES + on_ray * (IDLE_BYTES + RAY_BYTES)


def show_size(num_bytes: int, up: bool = False) -> str:
    """Return a size for people, in a form that `parse_size` reads; `up`: never less than it is."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            tenths = -(-10 * num_bytes // scale) if up else round(10 * num_bytes / scale)
            return f"{tenths // 10}.{tenths % 10}{unit}"
    return f"{num_bytes}B"
