"""Codes times their scales: the values of quantized weights.

Letters: K checkpoints, M elements.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.checkpoint.aligned_scales import AlignedScales, aligned
from pipeline.checkpoint.dtypes import DTYPES, WEIGHT_DTYPES
from pipeline.statistics.piece import Scratch, TensorFacts


def scaled(
    codes: Tensor, facts: TensorFacts, start: int, scales: Mapping[int, Tensor], scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Return the values of codes, and how far apart values are there.

    Args:
        codes: (K, M) elements of the tensor from `start` on, decoded as they are.
        scales: those that these elements need, of each checkpoint that has some.

    Returns:
        (K, M) values, and (K, M) float32: the power of two of each code, no less than the least of its
        format, times its scale; where a checkpoint has no scales, of the value.
    """
    length = codes.shape[1]
    factors = scratch.table("factors", torch.float32, length)
    indexes: dict[tuple[tuple[int, ...], ...], Tensor] = {}
    for k, factor in enumerate(factors):
        if k not in scales:
            factor.fill_(1)
            continue
        place = facts.scales[k]
        index = indexes.get((place.shape, place.blocks))
        if index is None:
            index = torch.from_numpy(place.indexes(start, start + length)).to(codes.device)
            indexes[place.shape, place.blocks] = index
        torch.index_select(scales[k], 0, index, out=factor)
    values = torch.mul(codes, factors, out=scratch.table("scaled", codes.dtype, length))
    spacing = scratch.table("spacing", torch.float32, length).copy_(codes)
    bits = spacing.view(torch.int32)
    bits &= 0x7F80_0000
    for k, row in enumerate(spacing):
        if k in scales:
            row.clamp_(min=2.0 ** WEIGHT_DTYPES[facts.dtypes[k]].least_exponent)
    spacing *= factors.abs_()
    return values, spacing


def needed_scales(
    place: AlignedScales, row: Tensor, column: int, held: tuple[int, int], start: int, stop: int
) -> Tensor:
    """Return the float32 scales that the elements [start, stop) need, on the CPU.

    Args:
        row: the bytes of a checkpoint's row of a block, in which the scales of a range of elements,
            `held`, begin at `column`.
    """
    (first, last), (begin, end) = place.needed(*held), place.needed(start, stop)
    dtype = DTYPES[place.dtype]
    at = column + (begin - first) * dtype.itemsize
    stored = row[at : at + (end - begin) * dtype.itemsize].view(getattr(torch, dtype.torch))
    scales = stored.to(torch.float32) * place.factor
    above = place.scales
    if above is None:
        return scales
    behind = column + aligned((last - first) * dtype.itemsize)
    values = needed_scales(above, row, behind, (first, last), begin, end)
    values = values[torch.from_numpy(above.indexes(begin, end))]
    return scales / values if place.divide else scales * values
