"""How many values have each exponent, and the coarsest format that represents them all.

Together they say how far apart the stored values of a part lie, and so what rounding makes of its steps
(`straight.py`, `sparsity.py`). Of codes with scales it is the spacing itself whose exponent counts. bf16 values saved
as fp32 count as bf16: which format it is is known once all tiles of a tensor are in. Source: docs/method-2.md, §5.3
and §6.2.

Letters: K checkpoints, B pieces, S sampled elements of each, E exponents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import COARSEST_FIRST, WEIGHT_DTYPES
from pipeline.statistics.statistic import ArraySpec

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.statistics.piece import Pieces, TensorFacts

LEAST_EXPONENT, MOST_EXPONENT = -40, 15
"""Exponents are clamped to these: trained weights lie far inside (docs/method-2.md, §6.2)."""
NUM_EXPONENTS = MOST_EXPONENT - LEAST_EXPONENT + 1
FLOAT32_BIAS, FLOAT32_FRACTION = 127, 23

_COUNTED_AT_ONCE = 1 << 17
"""Values: 1.4 ns each with 2¹⁶ to 2¹⁸, 1.7 with 2²¹, which no cache holds."""

_NAME = f"U{max(map(len, WEIGHT_DTYPES))}"
"""Holds the name of any format: NumPy cuts what is longer than the names that it began with."""

_LOOKED_AT_FIRST = 32
"""Columns that mostly show that a format does not represent the rest."""


class Exponents:
    """What the spacing of a part's stored values is made of."""

    name = "exponents"
    scratch = 0

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        k = num_checkpoints
        return (
            ArraySpec("exponents.counts", (k, NUM_EXPONENTS), "u4"),
            ArraySpec("exponents.fractions", (k,), "f8"),
            ArraySpec("exponents.represented", (k, len(COARSEST_FIRST)), "?", "and"),
            ArraySpec("exponents.numel", (), "i8"),
            ArraySpec("exponents.sampled", (), "i8"),
        )

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        facts, sample, spacing = pieces.facts, pieces.sample, pieces.sample_spacing
        represented = _represented(sample.numpy(), facts.dtypes, facts.stored)
        apart = _normal(sample if spacing is None else spacing, facts)
        contributions = {
            "exponents.counts": counts(apart),
            "exponents.represented": represented.swapaxes(0, 1),
            "exponents.numel": np.full(len(pieces), pieces.length),
            "exponents.sampled": np.full(len(pieces), sample.shape[2]),
        }
        if spacing is not None:
            contributions["exponents.fractions"] = _fractions(spacing)
        return contributions


def counts(values: Tensor) -> NDArray[np.uint32]:
    """Return (B, K, E) counts of (K, B, S) finite values by exponent."""
    import torch

    rows = values.flatten(0, 1)
    at_once = max(1, _COUNTED_AT_ONCE // max(1, rows.shape[1]))
    begins = torch.arange(at_once, dtype=torch.int32)[:, None] * NUM_EXPONENTS
    begins -= LEAST_EXPONENT + FLOAT32_BIAS
    by_row = np.empty((len(rows), NUM_EXPONENTS), np.uint32)
    for first in range(0, len(rows), at_once):
        sizes = rows[first : first + at_once].float().abs()
        bins = sizes.clamp_(2.0**LEAST_EXPONENT, 2.0**MOST_EXPONENT).view(torch.int32)
        bins >>= FLOAT32_FRACTION
        bins += begins[: len(bins)]
        counted = torch.bincount(bins.reshape(-1), minlength=len(bins) * NUM_EXPONENTS)
        by_row[first : first + at_once] = counted.view(len(bins), NUM_EXPONENTS).numpy()
    return by_row.reshape(*values.shape[:2], NUM_EXPONENTS).swapaxes(0, 1)


def _normal(values: Tensor, facts: TensorFacts) -> Tensor:
    """Return (K, B, S) values, those of 8-bit floats without scales no less than their least normal number.

    Of other formats that is seen to later, when it is known which one counts.
    """
    import torch

    leasts = {
        k: 2.0 ** WEIGHT_DTYPES[name].least_exponent
        for k, name in enumerate(facts.dtypes)
        if name not in COARSEST_FIRST and k not in facts.scales
    }
    if not leasts:
        return values
    least = torch.tensor([leasts.get(k, 0.0) for k in range(len(values))], dtype=values.dtype)
    return values.abs().maximum(least[:, None, None])


def _fractions(spacing: Tensor) -> NDArray[np.float64]:
    """Return (B, K) sums of what the logarithms to base 2 of (K, B, S) spacings have beyond whole numbers."""
    fractions, _ = spacing.frexp()  # in [0.5, 1), or 0 where a checkpoint is absent
    logarithms = fractions.clamp(min=0.5).log2().double() + 1
    return logarithms.sum(dim=2).T.numpy()


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


def spacing(
    exponents: NDArray[Any], stored: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return counts by the spacing of a format's values, (…, U), and these spacings, (U,), ascending.

    Below its least normal number they no longer shrink. None is less than all values have, or more.

    Args:
        exponents: (…, E) counts by exponent.
    """
    form = WEIGHT_DTYPES[stored]
    least = max(form.least_exponent, LEAST_EXPONENT) if stored in COARSEST_FIRST else LEAST_EXPONENT
    used = np.flatnonzero(exponents.reshape(-1, NUM_EXPONENTS).any(axis=0))
    lowest, highest = (used[0], used[-1]) if used.size else (0, 0)
    below = max(least - LEAST_EXPONENT, lowest)
    by_spacing = exponents[..., below : max(below, highest) + 1].astype(np.float64)
    by_spacing[..., 0] += exponents[..., lowest:below].sum(axis=-1)
    finest = LEAST_EXPONENT + below - form.fraction_bits
    return by_spacing, np.exp2(finest + np.arange(by_spacing.shape[-1], dtype=np.float64))
