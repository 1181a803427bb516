"""Sums in float64, rounded once to the format that they are stored in."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.checkpoint.dtypes import WEIGHT_DTYPES

_EXPONENT = 0x7FF0_0000_0000_0000


def rounded(values: Tensor, dtype: str) -> Tensor:
    """Return float64 values in a format of weights, to nearest, ties to even.

    torch goes from float64 to a half or an eighth by way of float32, which rounds twice: 1 + 2⁻⁸ + 2⁻³⁰
    becomes 1 in bfloat16, and the next number is nearer. Here values are rounded to multiples of the
    spacing of the format at their size, which it then holds as they are.

    Args:
        dtype: a name of `WEIGHT_DTYPES` that has a format of its own in torch.

    Raises:
        OverflowError: a value is beyond its range.
    """
    format = WEIGHT_DTYPES[dtype]
    target = getattr(torch, format.torch)
    if dtype == "F64":
        return values
    sizes = (values.view(torch.int64) & _EXPONENT).view(torch.float64)
    spacing = sizes.clamp_(min=2.0**format.least_exponent).mul_(2.0**-format.fraction_bits)
    nearest = torch.div(values, spacing).round_().mul_(spacing)
    if bool((nearest.abs() > torch.finfo(target).max).any()):
        raise OverflowError(dtype)
    return nearest.to(target)
