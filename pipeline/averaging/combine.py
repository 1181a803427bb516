"""The arithmetic: rows of bytes of all checkpoints to the bytes that are written.

Letters: K checkpoints, M elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.averaging.plan import AveragePlan, Written
from pipeline.averaging.rounding import rounded
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.errors import RequestError, quoted
from pipeline.planning.blocks import PlacedRange
from pipeline.statistics.pieces import PIECE, bounds

AT_ONCE = 2 * PIECE
"""Elements that are added up at once: their float64 sum, 256 KiB, and what it becomes stay in the cache."""
SCRATCH_BYTES = 8 * 8 * AT_ONCE
"""What that takes: the sum, a row, four arrays of rounding, and the result."""

Block = NDArray[np.uint8]


def combined(
    block: Block, place: PlacedRange, written: Written, plan: AveragePlan
) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
    """Yield the first element, the bytes and whether copied bytes differ, of a range in its order.

    Args:
        block: (K, row) bytes, of which the range has some columns.

    Raises:
        RequestError: NaN or infinity among the weights, or a sum beyond the range of its format.
    """
    range_ = place.range
    for first, stop in bounds(range_.first, range_.stop, AT_ONCE):
        begin, end = first - range_.first, stop - range_.first
        rows = _rows(block, place.column, begin, end, written)
        if written.is_copied:
            last = rows[-1].numpy()
            yield first, last, any(not torch.equal(rows[-1], row) for row in rows[:-1])
            continue
        values = _sum(rows, plan.weights)
        if not bool(torch.isfinite(values).all()):
            raise _not_finite(rows, written, plan)
        try:
            yield first, rounded(values, written.dtype).view(torch.uint8).numpy(), False
        except OverflowError:
            raise RequestError(
                f"tensor {quoted(written.name)}: a sum is beyond the range of {written.dtype}",
                "use --dtype F32",
            ) from None


def _rows(block: Block, column: int, begin: int, end: int, written: Written) -> list[Tensor]:
    """Return (M,) the elements of each checkpoint as stored."""
    rows = []
    for row, name in zip(block, written.read.dtypes, strict=True):
        dtype = WEIGHT_DTYPES[name]
        size = dtype.itemsize
        stored = torch.from_numpy(row[column + begin * size : column + end * size])
        rows.append(stored.view(getattr(torch, dtype.torch)))
    return rows


def _sum(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return (M,) the float64 sum of rows times weights, in order.

    Multiplied and added one after the other: fused they would round once, where a processor can.
    """
    total = rows[0].to(torch.float64).mul_(weights[0])
    term = torch.empty_like(total)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(term.copy_(row).mul_(weight))
    return total


def _not_finite(rows: Sequence[Tensor], written: Written, plan: AveragePlan) -> RequestError:
    for row, checkpoint in zip(rows, plan.checkpoints, strict=True):
        if not bool(torch.isfinite(row.to(torch.float64)).all()):
            return RequestError(
                f"{checkpoint.candidate.name}: tensor {quoted(written.name)} holds NaN or infinity",
                "leave the checkpoint out with --steps or --revisions, or give it no weight",
            )
    return RequestError(f"tensor {quoted(written.name)}: a sum is infinite")
