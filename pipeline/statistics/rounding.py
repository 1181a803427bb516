"""What storing weights in a number format rounds away: the rounding energy.

ε² = Σ ulp(w)²/12 in the coarsest format that represents all (sampled) values exactly, so that
bf16 values saved as fp32 count as bf16. Source: docs/method.md, "Noise floor".

While a tile is worked through only sums are kept, one per range of exponents; which format
counts is known once all tiles of a tensor are in.

Letters: K checkpoints, B pieces, S sampled elements of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import COARSEST_FIRST, WEIGHT_DTYPES
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces


NUM_SUMS = 2
"""Columns of the sums: Σ 4^e over the exponents e, for formats with the range of float32, and the
same with e no less than the least of the format it is stored in if that is 8 bits, else of float16."""

_NAME = f"U{max(map(len, WEIGHT_DTYPES))}"
"""Holds the name of any format: NumPy cuts what is longer than the names that it began with."""

_LOOKED_AT_FIRST = 32
"""Columns that mostly show that a format does not represent the rest."""


class Rounding:
    """What the rounding energy of a part is made of."""

    name = "rounding"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("rounding.sums", (num_checkpoints, NUM_SUMS), "f8"),
            ArraySpec("rounding.represented", (num_checkpoints, len(COARSEST_FIRST)), "?", "and"),
            ArraySpec("rounding.numel", (), "i8"),
            ArraySpec("rounding.sampled", (), "i8"),
        )

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        sample = pieces.sample.numpy()
        dtypes, stored = pieces.facts.dtypes, pieces.facts.stored
        spacing = pieces.sample_spacing
        powers = powers_of_two(sample) if spacing is None else spacing.numpy()
        leasts = [
            0.0 if k in pieces.facts.scales else _least_power(d) for k, d in enumerate(dtypes)
        ]
        sums, represented = _squares(powers, leasts), _represented(sample, dtypes, stored)
        return {
            "rounding.sums": sums.swapaxes(0, 1),
            "rounding.represented": represented.swapaxes(0, 1),
            "rounding.numel": np.full(len(pieces), pieces.length),
            "rounding.sampled": np.full(len(pieces), sample.shape[2]),
        }


def exponent_sums(sample: NDArray[Any], dtypes: Sequence[str]) -> NDArray[np.float64]:
    """Return (K, B, NUM_SUMS) sums of squared powers of two of (K, B, S) finite values, stored in `dtypes`."""
    return _squares(powers_of_two(sample), [_least_power(dtype) for dtype in dtypes])


def powers_of_two(sample: NDArray[Any]) -> NDArray[np.float32]:
    """Return the powers of two at or below values."""
    bits = sample.astype(np.float32, copy=False).view(np.int32)
    return (bits & np.int32(0x7F80_0000)).view(np.float32)


def _squares(power: NDArray[np.float32], leasts: Sequence[float]) -> NDArray[np.float64]:
    least = np.array(leasts, np.float32)
    with np.errstate(over="ignore"):  # beyond 2⁶⁴: rounding then says nothing of the angle
        wide = np.vecdot(power, power)
        np.maximum(power, least[:, None, None], out=power)
        half = np.vecdot(power, power)
    return np.stack((wide, half), axis=2).astype(np.float64)


@cache
def _least_power(dtype: str) -> float:
    return 2.0 ** WEIGHT_DTYPES[dtype if dtype.startswith("F8") else "F16"].least_exponent


def _represented(
    sample: NDArray[Any], dtypes: Sequence[str], stored: str | None
) -> NDArray[np.bool_]:
    """Return (K, B, 4): which formats of COARSEST_FIRST represent the (K, B, S) values exactly."""
    if stored is not None:
        checkpoints, pieces, sampled = sample.shape
        rows = represented(sample.reshape(checkpoints * pieces, sampled), stored)
        return rows.reshape(checkpoints, pieces, len(COARSEST_FIRST))
    return np.stack([represented(rows, dtype) for rows, dtype in zip(sample, dtypes, strict=True)])


def represented(sample: NDArray[Any], stored: str) -> NDArray[np.bool_]:
    """Return (R, 4): whether each format of COARSEST_FIRST represents a row's values exactly.

    Args:
        sample: (R, S).
        stored: the format that all rows are stored in.
    """
    possible = np.ones((len(sample), len(COARSEST_FIRST)), bool)
    if stored not in COARSEST_FIRST:
        return possible
    for column, name in enumerate(COARSEST_FIRST[: COARSEST_FIRST.index(stored)]):
        for values in (sample[:, :_LOOKED_AT_FIRST], sample[:, _LOOKED_AT_FIRST:]):
            rows = np.flatnonzero(possible[:, column])
            if not rows.size or not values.shape[1]:
                break
            possible[rows, column] = _REPRESENTS[name](
                values if rows.size == len(values) else values[rows]
            )
    return possible


def _in_bf16(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (R,): bf16 is the upper half of float32."""
    narrow = values.astype(np.float32, copy=False)
    lower = np.bitwise_or.reduce(np.ascontiguousarray(narrow).view(np.int32), axis=1) & 0xFFFF
    exact = lower == 0
    return exact if narrow is values else exact & (narrow == values).all(axis=1)


def _in(dtype: type[np.floating[Any]]) -> Callable[[NDArray[Any]], NDArray[np.bool_]]:
    def represents(values: NDArray[Any]) -> NDArray[np.bool_]:
        with np.errstate(over="ignore"):
            return (values.astype(dtype) == values).all(axis=1)

    return represents


_REPRESENTS = {"BF16": _in_bf16, "F16": _in(np.float16), "F32": _in(np.float32)}


def coarsest(represented: NDArray[np.bool_], dtypes: Sequence[str]) -> NDArray[np.str_]:
    """Return (Q, K) the coarsest format that represents all values of parts that are stored alike.

    Checkpoints that are stored alike are judged together: a norm that starts as ones is not
    stored in bf16 only because bf16 can represent a one.

    Args:
        represented: (Q, K, 4), over all tiles.
        dtypes: stored format of each checkpoint.
    """
    stored_in = np.array(dtypes, _NAME)
    formats = np.broadcast_to(stored_in, represented.shape[:2]).copy()
    for stored in sorted(set(dtypes)):
        if stored not in COARSEST_FIRST:
            continue  # nothing is coarser than 8 bits
        rows = np.flatnonzero(stored_in == stored)
        candidates = COARSEST_FIRST[: COARSEST_FIRST.index(stored)]
        holds = represented[:, rows, : len(candidates)].all(axis=1)  # (Q, candidates)
        holds = np.concatenate((holds, np.ones((len(holds), 1), bool)), axis=1)
        names = np.array([*candidates, stored], _NAME)[holds.argmax(axis=1)]
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
