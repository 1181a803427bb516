"""What the values themselves are: moments, sizes, zeros, changes of sign (docs/method-2.md, §6.2).

Letters: K checkpoints, M elements of a piece, Q parts, S sampled elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.exponents import FLOAT32_BIAS, LEAST_EXPONENT, NUM_EXPONENTS
from pipeline.statistics.gram import is_in_float32
from pipeline.statistics.groups import PartStack
from pipeline.statistics.statistic import ArraySpec, Rule

if TYPE_CHECKING:
    from pipeline.statistics.piece import Pieces

BINS_OF_AN_EXPONENT = 8
"""By three bits of fraction: the middle of a bin is within 1/16 of all in it."""
NUM_BINS = NUM_EXPONENTS * BINS_OF_AN_EXPONENT
POWERS = 4
QUANTILES = {
    "size_p01": 0.01,
    "size_p10": 0.10,
    "size_p50": 0.50,
    "size_p90": 0.90,
    "size_p99": 0.99,
    "size_p999": 0.999,
}


class Values:
    """Moments and sizes of the values at each checkpoint."""

    name = "values"
    scratch = 48  # values, sizes, three powers in float64, and a row each to compare with
    columns: tuple[str, ...] = (
        *("mean", "mean_size", "variance", "skewness", "kurtosis", "largest"),
        *("zeros", "sign_changes", "sign_changes_since_first", *QUANTILES),
    )
    of_increments: tuple[str, ...] = ("sign_changes",)
    group_rules: Mapping[str, Rule] = {"largest": "max"}

    def arrays(self, num_checkpoints: int) -> tuple[ArraySpec, ...]:
        k = num_checkpoints
        return (
            ArraySpec("values.sums", (k, POWERS), "f8"),
            ArraySpec("values.sizes", (k,), "f8"),
            ArraySpec("values.largest", (k,), "f8", "max"),
            ArraySpec("values.zeros", (k,), "i8"),
            ArraySpec("values.sign_changes", (k,), "i8"),
            ArraySpec("values.sign_changes_since_first", (k,), "i8"),
            ArraySpec("values.histogram", (k, NUM_BINS), "u4"),
        )

    def of_pieces(self, pieces: Pieces) -> dict[str, Any]:
        import torch

        values = pieces.present_values
        if not is_in_float32(pieces.facts):
            values = values.double()
        squares = values * values
        powers = (values, squares, squares * values, squares * squares)
        sums = torch.stack([power.sum(2, dtype=torch.float64) for power in powers], dim=2)
        sizes = values.abs()
        previous, first = pieces.facts.parents, pieces.first_of_path
        of_checkpoints = {
            "values.sums": sums.numpy(),
            "values.sizes": sizes.sum(2, dtype=torch.float64).numpy(),
            "values.largest": sizes.amax(2).double().numpy(),
            "values.zeros": (values == 0).sum(2).numpy(),
            "values.sign_changes": _sign_changes(values, np.maximum(previous, 0)),
            "values.sign_changes_since_first": _sign_changes(values, first),
            "values.histogram": size_histogram(pieces.sample),
        }
        return {name: array.swapaxes(0, 1) for name, array in of_checkpoints.items()}

    def of_parts(self, stack: PartStack) -> dict[str, NDArray[Any]]:
        weight = stack.weight[:, None]
        return {
            "numel": stack.numel,
            "sums": stack.arrays["values.sums"] * weight[..., None],
            "sizes": stack.arrays["values.sizes"] * weight,
            "largest": stack.arrays["values.largest"],
            **{
                name: stack.arrays[f"values.{name}"] * weight
                for name in ("zeros", "sign_changes", "sign_changes_since_first")
            },
            "histogram": stack.arrays["values.histogram"]
            * (stack.weight * stack.sampled_every)[:, None, None],
        }

    def rows(self, group: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        numel = group["numel"]
        mean, raw2, raw3, raw4 = group["sums"].T / numel
        variance = np.maximum(raw2 - mean**2, 0.0)
        third = raw3 - 3 * mean * raw2 + 2 * mean**3
        fourth = raw4 - 4 * mean * raw3 + 6 * mean**2 * raw2 - 3 * mean**4
        varies = variance > 4 * np.finfo(float).eps * raw2  # else all of it is rounding
        spread = np.where(varies, variance, np.nan)
        return {
            "mean": mean,
            "mean_size": group["sizes"] / numel,
            "variance": np.where(varies, variance, 0.0),
            "skewness": third / spread**1.5,
            "kurtosis": fourth / spread**2,
            "largest": group["largest"],
            "zeros": group["zeros"] / numel,
            "sign_changes": group["sign_changes"] / numel,
            "sign_changes_since_first": group["sign_changes_since_first"] / numel,
            **quantiles(group["histogram"]),
        }


def _sign_changes(values: Any, origin: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (K, B) how many of (K, B, M) values have the other sign than at the checkpoint compared with."""
    import torch

    if np.array_equal(origin, np.arange(len(values))):  # one checkpoint alone: half the time of all
        return np.zeros(values.shape[:2], np.int64)
    others = values[torch.from_numpy(origin)]
    return (((values > 0) & (others < 0)) | ((values < 0) & (others > 0))).sum(2).numpy()


def size_histogram(sample: Any) -> NDArray[np.uint32]:
    """Return (K, B, NUM_BINS) counts of the sizes of (K, B, S) finite values, by exponent and fraction."""
    import torch

    rows = sample.shape[0] * sample.shape[1]
    bins = (sample.float().reshape(rows, -1).view(torch.int32) & 0x7FFF_FFFF) >> 20
    bins -= (LEAST_EXPONENT + FLOAT32_BIAS) * BINS_OF_AN_EXPONENT
    bins.clamp_(0, NUM_BINS - 1)
    bins += NUM_BINS * torch.arange(rows, dtype=bins.dtype)[:, None]
    counts = torch.bincount(bins.reshape(-1), minlength=rows * NUM_BINS)
    return counts.reshape(*sample.shape[:2], NUM_BINS).numpy().astype(np.uint32)


def quantiles(histogram: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return (K,) quantiles of the sizes, each the middle of its bin; 0 below the least exponent."""
    bins = np.arange(NUM_BINS)
    power, eighth = np.divmod(bins, BINS_OF_AN_EXPONENT)
    middles = 2.0 ** (power + LEAST_EXPONENT) * (1 + (eighth + 0.5) / BINS_OF_AN_EXPONENT)
    middles[0] = 0.0
    reached = np.cumsum(histogram, axis=1)
    total = reached[:, -1:]
    return {
        name: middles[np.minimum((reached < share * total).sum(axis=1), NUM_BINS - 1)]
        for name, share in QUANTILES.items()
    }
