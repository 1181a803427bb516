"""How many stored values change from checkpoint to checkpoint, beside what equal steps would change.

Patterns of bits are compared, so −0 and 0 differ. Source: docs/method-2.md, §5.3 and §6.1.

Letters: K checkpoints, M elements of a piece, Q parts, E exponents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.dtypes import COARSEST_FIRST, WEIGHT_DTYPES
from pipeline.statistics.groups import PartStack
from pipeline.statistics.rounding import coarsest
from pipeline.statistics.statistic import ArraySpec, Rule, one_by_one
from pipeline.statistics.values import (
    LEAST_EXPONENT,
    NUM_EXPONENTS,
    exponents,
    size_histogram,
)

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces

TOLERANCE = np.float32(1e-5)
"""Of `beyond_1e5`: that of arXiv 2505.11711."""
COUNTS = (
    *("changed", "changed_since_first", "ever_changed", "reverted", "changed_again"),
    *("visible", "beyond_1e5"),
)
_MIDPOINTS = 24
"""Of equal probability of |z|, z ~ N(0, 1), scaled to mean square 1 (docs/method-2.md, §5.3)."""
_BISECTIONS = 60


class Sparsity:
    """Which stored values changed, in counts."""

    name = "sparsity"
    scratch = 40  # patterns, rounded ones, differences, and bins of small parts
    columns: tuple[str, ...] = (
        *("changed", "changed_expected", "changed_since_first", "ever_changed", "reverted"),
        *("changed_again", "overlap", "overlap_expected", "visible", "beyond_1e5"),
    )
    group_rules: Mapping[str, Rule] = {}
    of_increments: tuple[str, ...] = (
        *("changed", "changed_expected", "changed_again", "overlap", "overlap_expected"),
        *("visible", "beyond_1e5"),
    )

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        counts = (ArraySpec(f"sparsity.{name}", (num_checkpoints,), "i8") for name in COUNTS)
        of_exponents = ArraySpec("sparsity.exponents", (num_checkpoints, NUM_EXPONENTS), "u4")
        return (*counts, of_exponents)

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        return one_by_one(pieces, self._of_piece)

    def _of_piece(self, piece: Pieces) -> dict[str, Any]:
        import torch

        values, firsts = piece.values, piece.facts.firsts
        wide = values.dtype == torch.float64
        bits = values.contiguous().view(torch.int64 if wide else torch.int32).numpy()
        narrow = values.float()
        rounded = narrow.bfloat16().view(torch.int16).numpy()
        narrow = narrow.numpy()
        counts = {f"sparsity.{name}": np.zeros(len(bits), np.int64) for name in COUNTS}
        for first, stop in zip(firsts, [*firsts[1:], len(bits)], strict=True):
            of_path = slice(first, stop)
            of_counts = changes(bits[of_path], rounded[of_path], narrow[of_path])
            for name, numbers in of_counts.items():
                counts[f"sparsity.{name}"][of_path] = numbers
        return counts | {
            "sparsity.exponents": exponents(size_histogram(_spaced_like(piece))).astype(np.uint32)
        }

    def of_parts(self, stack: PartStack) -> dict[str, NDArray[Any]]:
        weight = stack.weight[:, None]
        expected, squared = _expected(stack)
        return {
            "numel": stack.numel,
            **{name: stack.arrays[f"sparsity.{name}"] * weight for name in COUNTS},
            "expected": expected,
            "expected_squared": squared,
            "before": stack.arrays["sparsity.changed"][:, np.maximum(stack.parents, 0)] * weight,
        }

    def rows(self, group: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        numel = group["numel"]
        shares = {name: group[name] / numel for name in COUNTS}
        pairs, expected = group["changed"] * group["before"], group["expected"]
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = np.where(pairs > 0, group["changed_again"] * numel / pairs, np.nan)
            expected_overlap = np.where(
                expected > 0, numel * group["expected_squared"] / expected**2, np.nan
            )
        return shares | {
            "changed_expected": expected / numel,
            "overlap": overlap,
            "overlap_expected": expected_overlap,
        }


def _spaced_like(piece: Pieces) -> Any:
    """Return (K, S) values whose exponents say how far apart values of the format are at the sampled ones.

    Of codes that is a matter of their scales, and of 8-bit floats of the least exponent, both known here.
    """
    import torch

    spacing, sample = piece.sample_spacing, piece.sample[:, 0]
    if spacing is not None:
        return spacing[:, 0]
    if set(piece.facts.dtypes) <= {*COARSEST_FIRST}:
        return sample
    leasts = [
        0.0 if name in COARSEST_FIRST else 2.0 ** WEIGHT_DTYPES[name].least_exponent
        for name in piece.facts.dtypes
    ]
    least = torch.tensor(leasts, dtype=sample.dtype, device=sample.device)
    return sample.abs().maximum(least[:, None])


def changes(
    bits: NDArray[Any], rounded: NDArray[np.int16], values: NDArray[np.float32]
) -> dict[str, NDArray[np.int64]]:
    """Return (K,) counts of one path's elements, by name; 0 at its first checkpoint.

    Args:
        bits: (K, M) patterns as stored.
        rounded: (K, M) patterns after rounding to bf16.
        values: (K, M).
    """
    changed = np.packbits(bits[1:] != bits[:-1], axis=1)
    moved = np.packbits(bits[1:] != bits[:1], axis=1)
    ever = np.bitwise_or.accumulate(changed, axis=0)
    again = changed.copy()
    again[:1] = 0
    again[1:] &= changed[:-1]
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = np.packbits(np.abs(values[1:] - values[:-1]) > TOLERANCE, axis=1)
    packed = {
        "changed": changed,
        "changed_since_first": moved,
        "ever_changed": ever,
        "reverted": ever & ~moved,
        "changed_again": again,
        "visible": np.packbits(rounded[1:] != rounded[:-1], axis=1),
        "beyond_1e5": beyond,
    }
    return {
        name: np.append(0, np.bitwise_count(rows).sum(axis=1, dtype=np.int64))
        for name, rows in packed.items()
    }


def _expected(stack: PartStack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (Q, K) Σp and Σp², p the chance that a step of equal size everywhere changes a value."""
    count = len(stack.parents)
    scale = (stack.weight * stack.sampled_every)[:, None, None]
    before = stack.arrays["sparsity.exponents"][:, np.maximum(stack.parents, 0)] * scale
    expected, squared = np.zeros((2, len(before), count))
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, dtypes in enumerate(stack.dtypes):
        alike[dtypes].append(row)
    for dtypes, rows in alike.items():
        formats = coarsest(stack.arrays["rounding.represented"][rows], dtypes)  # (Q', K) names
        for name in np.unique(formats):
            at, k = np.nonzero((formats == name) & (stack.parents >= 0))
            if not at.size:
                continue
            of_format = np.array(rows)[at]
            chances = changed_by_equal_steps(
                before[of_format, k], stack.squared_increments[of_format, k], str(name)
            )
            expected[of_format, k], squared[of_format, k] = chances
    return expected, squared


def changed_by_equal_steps(
    exponents: NDArray[np.float64], squared_lengths: NDArray[np.float64], stored: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Σp and Σp², (R,) each, for steps of one size m everywhere, rounded.

    A weight moves by m z, z ~ N(0, 1); with x = |m z|/ulp it changes with probability min(1, x), and
    the stored step has the mean square ulp² (x² + f(1 − f)), f = frac x. m is such that these add up
    to the squared length of the increment.

    Args:
        exponents: (R, E) weights by exponent.
        squared_lengths: (R,) of the increments.
        stored: the format that they are rounded to.
    """
    z = _sizes_of_normal(_MIDPOINTS)
    form = WEIGHT_DTYPES[stored]
    powers = np.arange(NUM_EXPONENTS) + LEAST_EXPONENT
    if stored in COARSEST_FIRST:  # of others it has been seen to
        powers = np.maximum(powers, form.least_exponent)
    ulps = 2.0 ** (powers - form.fraction_bits)

    def steps(m: NDArray[np.float64]) -> NDArray[np.float64]:
        return m[:, None, None] * z[:, None] / ulps  # (R, midpoints, E)

    def squared_length(m: NDArray[np.float64]) -> NDArray[np.float64]:
        x = steps(m)
        part = x - np.floor(x)
        return (exponents * ulps**2 * (x**2 + part * (1 - part)).mean(axis=1)).sum(axis=1)

    numel = np.maximum(exponents.sum(axis=1), 1e-300)
    most = np.sqrt(
        squared_lengths / numel
    )  # rounding adds to the squared length: m is at most this
    low, high = np.zeros_like(most), 2 * most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = squared_length(middle) < squared_lengths
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    chances = np.minimum(1.0, steps(high))
    moved = squared_lengths > 0
    of_midpoints = chances.mean(axis=1), (chances**2).mean(axis=1)
    expected, squared = ((exponents * p).sum(axis=1) * moved for p in of_midpoints)
    return expected, squared


def _sizes_of_normal(count: int) -> NDArray[np.float64]:
    """Return midpoints of equal probability of |z|, scaled to mean square 1."""
    normal = NormalDist()
    sizes = np.array([normal.inv_cdf(0.5 + (n + 0.5) / (2 * count)) for n in range(count)])
    return sizes / np.sqrt(np.mean(sizes**2))
