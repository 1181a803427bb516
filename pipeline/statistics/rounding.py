"""What storing weights in a number format rounds away: the rounding energy.

ε² = Σ ulp(w)²/12 in the coarsest format that represents all (sampled) values exactly, so that
bf16 values saved as fp32 count as bf16. Source: docs/method.md, "Noise floor".

While a tile is worked through only sums are kept, one per range of exponents; which format
counts is known once all tiles of a tensor are in.

Letters: K checkpoints, M sampled elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.checkpoint.dtypes import COARSEST_FIRST, WEIGHT_DTYPES

SAMPLED_EVERY = 16  # 1e-3 relative error at 4 % of the product's time (docs/method.md, §1)
MIN_SAMPLED = 1 << 18
"""Tensors of fewer elements are not sampled but taken whole: a sixteenth of them would leave more
than 1 % of error, and they cost nothing."""


_CAST: dict[str, torch.dtype] = {
    name: getattr(torch, WEIGHT_DTYPES[name].torch) for name in COARSEST_FIRST[:-1]
}

NUM_SUMS = 2
"""Columns of the sums: Σ 4^e over the exponents e, for formats with the range of float32, and the
same with e no less than the least of the format it is stored in if that is 8 bits, else of float16."""


def exponent_sums(sample_KM: Tensor, dtypes: Sequence[str]) -> NDArray[np.float64]:
    """Return (K, NUM_SUMS) sums of squared powers of two of finite values, stored in `dtypes`."""
    power = (sample_KM.float().view(torch.int32) & 0x7F80_0000).view(torch.float32)
    wide = torch.linalg.vecdot(power, power)
    least = [
        2.0 ** WEIGHT_DTYPES[d if d.startswith("F8") else "F16"].least_exponent for d in dtypes
    ]
    if len(set(least)) == 1:
        power.clamp_(min=least[0])
    else:
        power = torch.maximum(power, torch.tensor(least, device=power.device)[:, None])
    half = torch.linalg.vecdot(power, power)
    return torch.stack((wide, half), dim=1).double().cpu().numpy()


def represented(sample_KM: Tensor, stored: str, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (K, 4): whether each format of COARSEST_FIRST represents a row's values exactly.

    Args:
        stored: the format that all rows are stored in.
        rows: (K, 4), what is still possible; what is False stays so and costs nothing.
    """
    possible = rows.copy()
    if stored not in COARSEST_FIRST:
        return possible
    for column, name in enumerate(COARSEST_FIRST):
        if name == stored:
            break
        if not possible[:, column].any():
            continue
        exact = (sample_KM.to(_CAST[name]).to(sample_KM.dtype) == sample_KM).all(dim=1)
        possible[:, column] &= exact.cpu().numpy()
    return possible


def energies(
    sums: NDArray[np.float64],
    represented: NDArray[np.bool_],
    dtypes: Sequence[str],
    scale: float,
) -> NDArray[np.float64]:
    """Return (K,) rounding energies of one tensor or part.

    Checkpoints that are stored alike are judged together: a norm that starts as ones is not
    stored in bf16 only because bf16 can represent a one.

    Args:
        sums: (K, NUM_SUMS), of `exponent_sums`, over all tiles.
        represented: (K, 4), over all tiles.
        dtypes: stored format of each checkpoint.
        scale: elements per sampled element.
    """
    found = np.zeros(len(dtypes))
    for stored in set(dtypes):
        rows = np.array([dtype == stored for dtype in dtypes])
        # nothing is coarser than 8 bits
        known = COARSEST_FIRST.index(stored) if stored in COARSEST_FIRST else 0
        candidates = COARSEST_FIRST[:known]
        name = next(
            (name for column, name in enumerate(candidates) if represented[rows, column].all()),
            stored,
        )
        column = 0 if name in ("BF16", "F32", "F64") else 1
        ulp_of_one = 2.0 ** -WEIGHT_DTYPES[name].fraction_bits
        found[rows] = sums[rows, column] * scale * ulp_of_one**2 / 12
    return found
