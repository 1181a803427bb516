"""The memory of the reduction: how it is divided, and what it takes at most beyond an idle process.

Integer arithmetic only. The factors were fitted to the growth of RssAnon while stored sums became tables:
24 checkpoints of 12,000 tensors, 154 of 300 and 935 of 20, with one thread and two, buffers small and large.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.numerics.indicators import INDICATORS
from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.figures import STACK_BYTES as MOST_BATCH
from pipeline.reduce.groups import Grouping
from pipeline.statistics.statistic import part_bytes

MOST_STACK = 16 << 20
"""Of Gram matrices that are added up at once: enough that the calls cost little beside them."""
MOST_HELD = 128 << 20
"""Of sums that may be asked for again: neighbours in a layer lie in few files."""
MOST_FILE = 32 << 20
"""Of a table encoded before it is stored: two million rows of similarities."""

_FIXED = 96 << 20
"""Row groups that fill, what Arrow and the allocators keep of what was freed, a file of sums being read."""
_ENTRY = 490
"""What a plan keeps of a tensor at a checkpoint: 12,000 tensors of 24 took 135 MiB."""
_FILE_OF_SUMS = 16 << 20  # twice: as bytes and as arrays
_FIGURES = 36  # times the sums of a batch: what a thread makes of them, and two results that wait
_STACKS = 6  # packed, unpacked, added up; batches that wait keep two alive
_ENCODED = 3, 2  # a file grows by doubling
_PAIR, _CHECKPOINT, _INDICATOR = (
    18,
    140,
    11,
)  # bytes encoded of a row of similarities, of all of a k


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


def buffers(plan: Plan, budget: int, threads: int) -> Buffers:
    """Return how a budget is divided; what decides nothing about the figures is made smaller to fit it.

    Args:
        threads: at most.
    """
    batch = min(MOST_BATCH, budget // 256)
    of_thread = _FIGURES * max(batch, _matrices(plan))
    return Buffers(
        threads=max(1, min(threads, budget // 2 // of_thread)),
        batch=batch,
        stack=min(MOST_STACK, budget // 32),
        held=min(MOST_HELD, budget // 8),
        file=min(MOST_FILE, budget // 16),
    )


def projected(plan: Plan, grouped: Grouping, divided: Buffers) -> int:
    """Return the most that the reduction takes beyond an idle process."""
    count, groups = len(plan.checkpoints), len(grouped.keys)
    matrices = _matrices(plan)
    sums = len(grouped.members) * part_bytes(plan.statistics, count)
    tables = (
        groups * _PAIR * count * (count + 1) // 2,
        groups * _CHECKPOINT * count,
        groups * _INDICATOR * len(INDICATORS),
    )
    encoded = sum(min(divided.file, table) for table in tables) * (1 + len(plan.paths))
    return (
        _FIXED
        + _ENTRY * len(plan.tensors) * count
        + 2 * _FILE_OF_SUMS
        + min(divided.held, sums)
        + _STACKS * max(divided.stack, matrices)
        + encoded * _ENCODED[0] // _ENCODED[1]
        + divided.threads * _FIGURES * max(divided.batch, matrices)
        + most_open(grouped) * matrices
    )


def _matrices(plan: Plan) -> int:
    """Return the bytes of the sums of one group: of a sample a change for each fold, too."""
    folds = JACKKNIFE_FOLDS if plan.sampled else 0
    return 8 * len(plan.checkpoints) ** 2 * (1 + folds)


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
