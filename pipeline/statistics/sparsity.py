"""How many stored values change from checkpoint to checkpoint, beside what equal steps would change.

Patterns of bits are compared, so −0 and 0 differ. Source: docs/method-2.md, §5.3 and §6.1.

Letters: K checkpoints, M elements of a piece, Q parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics import equal_steps
from pipeline.statistics.groups import PartStack
from pipeline.statistics.statistic import ArraySpec, Rule, one_by_one

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces

TOLERANCE = np.float32(1e-5)
"""Of `beyond_1e5`: that of arXiv 2505.11711."""
COUNTS = (
    *("changed", "changed_since_first", "ever_changed", "reverted", "changed_again"),
    *("visible", "beyond_1e5"),
)


class Sparsity:
    """Which stored values changed, in counts."""

    name = "sparsity"
    scratch = 32  # patterns, rounded ones, differences
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
        return tuple(ArraySpec(f"sparsity.{name}", (num_checkpoints,), "i8") for name in COUNTS)

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
        return counts

    def of_parts(self, stack: PartStack) -> dict[str, NDArray[Any]]:
        weight = stack.weight[:, None]
        expected, squared = _expected(stack)
        return {
            "numel": stack.numel,
            **{name: stack.arrays[f"sparsity.{name}"] * weight for name in COUNTS},
            "expected": expected,
            "expected_squared": squared,
            "before": stack.arrays["sparsity.changed"][:, np.maximum(stack.basis.parents, 0)]
            * weight,
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
    expected, squared = np.zeros((2, len(stack.numel), stack.basis.count))
    onward = ~np.isin(np.arange(stack.basis.count) + 1, [*stack.basis.firsts, stack.basis.count])
    for alike in stack.spaced_alike:
        before = np.flatnonzero(onward[alike.checkpoints])
        place = alike.parts[before], alike.checkpoints[before] + 1
        lengths = stack.squared_increments[place] / alike.units[before] ** 2
        expected[place], squared[place] = equal_steps.changes(
            alike.counts, alike.spacings, before, lengths
        )
    return expected, squared
