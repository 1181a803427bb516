"""From merged arrays of parts to what adds up over the parts of a group.

Letters: Q parts, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PartStack:
    """What was read of some parts, over all tiles and folds."""

    arrays: Mapping[str, NDArray[Any]]
    """By name, (Q, …); of symmetric matrices the upper triangle."""
    numel: NDArray[np.float64]
    """(Q,) elements of each part, read or not."""
    dtypes: Sequence[tuple[str, ...]]
    """Stored format of each part at each checkpoint."""
    parents: NDArray[np.int64]
    """(K,) the checkpoint that each increment starts from; -1: none."""

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """(Q,) elements that each element read stands for: 1 where all were read."""
        return self.numel / np.maximum(1, self.arrays["rounding.numel"])

    @cached_property
    def sampled_every(self) -> NDArray[np.float64]:
        """(Q,) elements read for each that is in the sample of values."""
        return self.arrays["rounding.numel"] / np.maximum(1, self.arrays["rounding.sampled"])

    @cached_property
    def squared_increments(self) -> NDArray[np.float64]:
        """(Q, K) ‖Δ_k‖² of the whole part; at the first checkpoint ‖θ_0‖²."""
        triangle = self.arrays["gram.increments"]
        count = len(self.parents)
        diagonal = np.cumsum(np.arange(count, 0, -1)) - np.arange(count, 0, -1)
        return triangle[:, diagonal] * self.weight[:, None]
