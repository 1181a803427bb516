"""What storing weights in a number format rounds away: the rounding energy.

ε² = Σ ulp(w)²/12 in the coarsest format that represents all (sampled) values exactly, so that
bf16 values saved as fp32 count as bf16. Source: docs/method.md, "Noise floor".

While a tile is worked through only sums are kept, one per range of exponents; which format
counts is known once all tiles of a tensor are in.

Letters: K checkpoints, S sampled elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import COARSEST_FIRST, WEIGHT_DTYPES
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.statistics.piece import Piece


NUM_SUMS = 2
"""Columns of the sums: Σ 4^e over the exponents e, for formats with the range of float32, and the
same with e no less than the least of the format it is stored in if that is 8 bits, else of float16."""

_LOOKED_AT_FIRST = 32
"""Columns that mostly show that a format does not represent the rest."""


class Rounding:
    """What the rounding energy of a part is made of."""

    name = "rounding"

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("rounding.sums", (num_checkpoints, NUM_SUMS), "f8"),
            ArraySpec("rounding.represented", (num_checkpoints, len(COARSEST_FIRST)), "?", "and"),
            ArraySpec("rounding.numel", (), "i8"),
            ArraySpec("rounding.sampled", (), "i8"),
        )

    def of_piece(self, piece: Piece) -> dict[str, Any]:
        sample = piece.sample
        return {
            "rounding.sums": exponent_sums(sample, piece.facts.dtypes),
            "rounding.represented": _represented(sample, piece),
            "rounding.numel": piece.values.shape[1],
            "rounding.sampled": sample.shape[1],
        }


def exponent_sums(sample: Tensor, dtypes: Sequence[str]) -> NDArray[Any]:
    """Return (K, NUM_SUMS) sums of squared powers of two of (K, S) finite values, stored in `dtypes`."""
    import torch

    power = (sample.float().view(torch.int32) & 0x7F80_0000).view(torch.float32)
    wide = _squared_lengths(power)
    least = [
        2.0 ** WEIGHT_DTYPES[d if d.startswith("F8") else "F16"].least_exponent for d in dtypes
    ]
    if len(set(least)) == 1:
        power.clamp_(min=least[0])
    else:
        power = torch.maximum(power, torch.tensor(least, device=power.device)[:, None])
    return np.stack((wide, _squared_lengths(power)), axis=1)


def _squared_lengths(rows: Tensor) -> NDArray[Any]:
    import torch

    if rows.device.type != "cpu":
        return torch.linalg.vecdot(rows, rows).double().cpu().numpy()
    values = rows.numpy()
    return np.vecdot(values, values).astype(np.float64)  # BLAS, a third of the time of torch's


def _represented(sample: Tensor, piece: Piece) -> NDArray[np.bool_]:
    """Return (K, 4): which formats of COARSEST_FIRST represent a row's values exactly."""
    facts = piece.facts
    if facts.stored is not None:
        return represented(sample, facts.stored)
    rows = zip(sample.split(1), facts.dtypes, strict=True)
    return np.concatenate([represented(row, dtype) for row, dtype in rows])


def represented(sample: Tensor, stored: str) -> NDArray[np.bool_]:
    """Return (K, 4): whether each format of COARSEST_FIRST represents a row's values exactly.

    Args:
        stored: the format that all rows are stored in.
    """
    import torch

    possible = np.ones((len(sample), len(COARSEST_FIRST)), bool)
    if stored not in COARSEST_FIRST:
        return possible
    for column, name in enumerate(COARSEST_FIRST[: COARSEST_FIRST.index(stored)]):
        cast = getattr(torch, WEIGHT_DTYPES[name].torch)
        for values in (sample[:, :_LOOKED_AT_FIRST], sample[:, _LOOKED_AT_FIRST:]):
            rows = np.flatnonzero(possible[:, column])
            if not rows.size or not values.shape[1]:
                break
            if rows.size < len(values):
                values = values[torch.from_numpy(rows).to(values.device)]
            exact = (values.to(cast).to(values.dtype) == values).all(dim=1)
            possible[rows, column] = exact.cpu().numpy()
    return possible


def coarsest(represented: NDArray[np.bool_], dtypes: Sequence[str]) -> NDArray[np.str_]:
    """Return (Q, K) the coarsest format that represents all values of parts that are stored alike.

    Checkpoints that are stored alike are judged together: a norm that starts as ones is not
    stored in bf16 only because bf16 can represent a one.

    Args:
        represented: (Q, K, 4), over all tiles.
        dtypes: stored format of each checkpoint.
    """
    stored_in = np.array(dtypes)
    formats = np.broadcast_to(stored_in, represented.shape[:2]).copy()
    for stored in sorted(set(dtypes)):
        if stored not in COARSEST_FIRST:
            continue  # nothing is coarser than 8 bits
        rows = np.flatnonzero(stored_in == stored)
        candidates = COARSEST_FIRST[: COARSEST_FIRST.index(stored)]
        holds = represented[:, rows, : len(candidates)].all(axis=1)  # (Q, candidates)
        holds = np.concatenate((holds, np.ones((len(holds), 1), bool)), axis=1)
        names = np.array([*candidates, stored], formats.dtype)[holds.argmax(axis=1)]
        formats[:, rows] = names[:, None]
    return formats


def energies(
    sums: NDArray[np.float64],
    represented: NDArray[np.bool_],
    dtypes: Sequence[str],
    scale: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (Q, K) rounding energies of parts whose tensors are stored alike.

    Args:
        sums: (Q, K, NUM_SUMS), of `exponent_sums`, over all tiles.
        represented: (Q, K, 4), over all tiles.
        dtypes: stored format of each checkpoint.
        scale: (Q,) elements per sampled element.
    """
    formats = coarsest(represented, dtypes)
    energy = np.zeros(formats.shape)
    for name in sorted(set(formats.reshape(-1))):
        column = 0 if name in ("BF16", "F32", "F64") else 1
        squared_ulp = (2.0 ** -WEIGHT_DTYPES[name].fraction_bits) ** 2  # of one
        rows, k = np.nonzero(formats == name)
        energy[rows, k] = sums[rows, k, column] * scale[rows] * squared_ulp / 12
    return energy
